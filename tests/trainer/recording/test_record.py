"""A library of runs: what is drawn, that it is kept, and the same from one process or several."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, DivergenceError, RunError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning import job as job_module
from mixgym.trainer.recording.draws import (
    BLOCK,
    PAIR_FROM,
    RATE_FACTOR,
    STEPS_FACTOR,
    configured,
    draw_run,
)
from mixgym.trainer.recording.record import RECORD, record, record_table
from mixgym.trainer.runs.folder import RunFolder

from ..conftest import Make, untimed

FAST: dict[str, Any] = {  # the closed-form learner: what a run leaves is the same
    "sources": "embedded",
    "environment": {"learner": "curves"},
    "training": {"steps": 4, "interval": 1},
    "run": {"tensorboard": False},
}


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config("library", **FAST)


def test_draws_depend_on_seed_and_number_alone() -> None:
    draws = [draw_run(3, number) for number in range(2 * BLOCK)]
    assert draws == [draw_run(3, number) for number in range(2 * BLOCK)]
    assert draws[0] != draw_run(4, 0)
    assert len({draw.draw for draw in draws}) == 2 * (BLOCK - 1), "the two of a pair share theirs"
    varied = [draw_run(3, number, ("rate", "steps")) for number in range(2 * BLOCK)]
    for plain, other in zip(draws, varied, strict=True):
        assert (plain.rate_factor, plain.steps_factor) == (1.0, 1.0)
        assert plain.options == other.options
        assert 1 / RATE_FACTOR <= other.rate_factor <= RATE_FACTOR
        assert 1 / STEPS_FACTOR <= other.steps_factor <= STEPS_FACTOR
    assert len({draw.rate_factor for draw in varied}) == 2 * (BLOCK - 1)


def test_two_of_ten_are_the_same_mixtures_in_either_order() -> None:
    first, second = (draw_run(0, PAIR_FROM + i, ("rate", "steps")) for i in (0, 1))
    assert (first.kind, second.kind) == ("first order", "second order")
    assert (first.at, first.reverse, second.reverse) == ((0.5,), False, True)
    changed = {"name", "kind", "reverse"}
    assert {k for k in vars(first) if getattr(first, k) != getattr(second, k)} == changed
    kinds = [draw_run(0, number).kind for number in range(100)]
    assert kinds.count("first order") == kinds.count("second order") == 10
    assert min(kinds.count("constant"), kinds.count("changing")) > 10


def test_a_longer_run_has_as_many_decisions(config: RunConfig) -> None:
    longer = config.model_copy(
        update={"training": config.training.model_copy(update={"steps": 320, "interval": 10})}
    )
    for number in range(20):
        draw = draw_run(1, number, ("steps", "rate"))
        made = configured(longer, draw)
        assert made.training.steps == round(320 * draw.steps_factor)
        assert made.training.steps / made.training.interval == pytest.approx(32, rel=0.1)
        assert made.training.learning_rate == config.training.learning_rate * draw.rate_factor
        assert (made.seed, made.model) == (config.seed, config.model), "the same rows are measured"


def test_a_library_holds_curves_and_no_models(config: RunConfig) -> None:
    report = record(config, runs=BLOCK)
    folder = Path(config.run.dir)
    assert json.loads((folder / RECORD).read_text()) == storage.plain(report)
    assert [row["status"] for row in report["runs"]] == ["finished"] * BLOCK
    for row in report["runs"]:
        inside = sorted(path.name for path in (folder / row["name"]).iterdir())
        assert inside == ["config.yaml", "decisions.jsonl", "summary.json", "world.json"]
    worlds = {(folder / row["name"] / "world.json").read_text() for row in report["runs"]}
    assert len(worlds) == 1, "all start alike and are measured on the same rows"
    check_pair(folder)
    assert "first order" in str(record_table(report).columns[1]._cells)


def check_pair(folder: Path) -> None:
    """The mixtures of the first half are those of the other's second half."""
    forth, back = (
        [record["mixture"] for record in RunFolder.open(folder / f"run-000{n}").read_decisions()]
        for n in (PAIR_FROM, PAIR_FROM + 1)
    )
    assert forth == back[2:] + back[:2]
    assert forth[0] != forth[-1]


def curve(folder: Path) -> list[dict[str, Any]]:
    return [untimed(record) for record in RunFolder.open(folder).read_decisions()]


def test_a_killed_library_goes_on_in_several_processes(
    config: RunConfig, make_config: Make
) -> None:
    other = make_config("other", **FAST)
    record(other, runs=3)
    record(config, runs=1)
    folder, whole = Path(config.run.dir), Path(other.run.dir)
    torn = folder / "run-0001"  # a run that was killed after two decisions
    torn.mkdir()
    text = (whole / "run-0001" / "config.yaml").read_text()
    (torn / "config.yaml").write_text(text.replace(str(whole), str(folder)))
    lines = (whole / "run-0001" / "decisions.jsonl").read_text().splitlines(keepends=True)
    (torn / "decisions.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    kept = (folder / "run-0000" / "summary.json").stat().st_mtime_ns
    report = record(config, runs=3, processes=2)
    assert (folder / "run-0000" / "summary.json").stat().st_mtime_ns == kept
    for row in report["runs"]:
        assert curve(folder / row["name"]) == curve(whole / row["name"])


def test_another_configuration_is_refused_in_the_same_folder(config: RunConfig) -> None:
    record(config, runs=1)
    other = config.model_copy(
        update={"training": config.training.model_copy(update={"learning_rate": 0.5})}
    )
    with pytest.raises(RunError, match=r"run-0000: .*training\.learning_rate = 0.001, not 0.5"):
        record(other, runs=2)
    rows = json.loads((Path(config.run.dir) / RECORD).read_text())["runs"]
    assert [row["status"] for row in rows] == ["failed", "finished"]


def test_a_run_that_diverges_is_told_and_not_tried_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def diverge(own: RunConfig, **options: Any) -> dict[str, Any]:
        calls.append(own.run.dir)
        RunFolder.create(own.run.dir, own).write_summary({"status": "diverged", "failure": "nan"})
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(job_module, "finetune", diverge)
    for _ in range(2):
        row = record(config, runs=1)["runs"][0]
        assert (row["status"], row["steps"], row["tokens"]) == ("diverged", 0, 0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"runs": 0}, "--runs 0"), ({"runs": 1, "vary": ["stps"]}, "did you mean steps")],
)
def test_mistakes_are_refused(options: dict[str, Any], words: str, config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=words):
        record(config, **options)
    assert not Path(config.run.dir).exists()
