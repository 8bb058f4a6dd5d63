"""Tasks depend on their seed alone, sets do not overlap, and every task can be run."""

from itertools import combinations

import numpy as np
import pytest

from mixgym.envs.errors import ConfigError
from mixgym.trainer.tasks import real_tasks as module
from mixgym.trainer.tasks.pool import Pool
from mixgym.trainer.tasks.real_tasks import REAL_SETS, RealTask, draw_task, real_tasks


@pytest.fixture(scope="module")
def tasks(pool: Pool) -> list[RealTask]:
    return real_tasks("real-train", pool, 400)


def test_tasks_are_the_same_whenever_they_are_drawn(pool: Pool, tasks: list[RealTask]) -> None:
    assert real_tasks("real-train", pool, 20) == tasks[:20]
    assert [task.name for task in tasks[:2]] == ["real-train-0000", "real-train-0001"]
    assert draw_task(pool, 7) == tasks[7]
    first = draw_task(pool, 0)  # frozen: whoever trained on a set can name it
    assert (first.steps, first.interval, first.held_out_tokens) == (378, 12, 1834)
    assert [(s.name, s.rows, s.change) for s in first.sources] == FIRST


FIRST = [("noise", 39, "none"), ("plain", 36, "none"), ("said", 63, "none")]


def test_sets_do_not_overlap(pool: Pool) -> None:
    for one, other in combinations(REAL_SETS.values(), 2):
        assert not {*one} & {*other}
    drawn = [repr(task.sources) for name in REAL_SETS for task in real_tasks(name, pool, 100)]
    assert len({*drawn}) == len(drawn)


def test_every_task_has_targets_and_what_it_takes(pool: Pool, tasks: list[RealTask]) -> None:
    for task in tasks:
        names = [source.name for source in task.sources]
        assert 3 <= len(names) == len({*names}) <= 7
        assert sum(source.target > 0 for source in task.sources) >= 2
        assert {source.target for source in task.sources} <= {*module.TARGETS}
        assert 200 <= task.steps <= 600
        assert 26 <= task.steps / task.interval <= 38
        assert 7e-4 <= task.learning_rate <= 4e-3
        assert 100 <= task.held_out_tokens <= 2000
        for source in task.sources:
            size = len(pool.sources[source.name].splits["train"])
            assert min(size, max(30, size // 30)) <= source.rows <= size
            if pool.sources[source.name].is_noise or source.change == "shuffled":
                assert source.target == 0
            assert (source.distinct < source.rows) == (source.change == "repeated")
            assert (source.donor is not None) == (source.change == "long")
            assert source.donor != source.name
            assert source.change == "none" or pool.sources[source.name].answers


def test_changes_and_targets_come_as_often_as_they_should(tasks: list[RealTask]) -> None:
    for change in module.CHANGES:
        share = np.mean([any(s.change == change for s in task.sources) for task in tasks])
        assert share == pytest.approx(0.3, abs=0.07)
        assert max(sum(s.change == change for s in task.sources) for task in tasks) == 1
    assert {len(task.sources) for task in tasks} == set(range(3, 8))
    uneven = [{s.target for s in task.sources} - {0.0, 1.0} for task in tasks]
    assert 0.15 < np.mean([bool(values) for values in uneven]) < 0.35


def test_mistakes_are_refused(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="did you mean real-test"):
        real_tasks("real-tset", pool)
    with pytest.raises(ConfigError, match="--limit 0"):
        real_tasks("real-test", pool, 0)
    few = Pool("here", {name: pool.sources[name] for name in ("noise", "talk", "said")})
    assert {s.name for s in draw_task(few, 0).sources} == {"noise", "talk", "said"}
    with pytest.raises(ConfigError, match="here: has 2 sources, 1 of them no noise"):
        draw_task(Pool("here", {name: pool.sources[name] for name in ("noise", "talk")}), 0)
