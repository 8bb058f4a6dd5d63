"""When a run was as good as another: hand-worked curves, and what holds for every curve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.trainer.comparing.curves import RunCurve, curve_of, tokens_to
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune

from ..conftest import Make


def curve(*points: tuple[float, float]) -> RunCurve:
    tokens, losses = np.array(points, np.float64).T
    return RunCurve(tokens, np.minimum.accumulate(losses))


def test_linear_between_measurements_and_the_best_so_far_counts() -> None:
    mine = curve((0, 6.0), (100, 4.0), (200, 5.0), (300, 3.0))
    assert mine.final == 3.0
    assert tokens_to(mine, 6.5) == 0
    assert tokens_to(mine, 5.0) == 50
    assert tokens_to(mine, 4.0) == 100
    assert tokens_to(mine, 3.5) == 250, "the rise to 5 is no way back: 4 is held until 200"
    assert tokens_to(mine, 3.0) == 300
    assert tokens_to(mine, 2.99) is None


@given(
    st.lists(st.floats(0.1, 9), min_size=2, max_size=12),
    st.floats(0.1, 9),
    st.floats(0.1, 9),
)
def test_a_lower_loss_never_takes_less(losses: list[float], one: float, other: float) -> None:
    mine = curve(*enumerate(losses))
    high, low = tokens_to(mine, max(one, other)), tokens_to(mine, min(one, other))
    assert low is None or (high is not None and high <= low)
    last = tokens_to(mine, mine.final)
    assert last is not None
    assert last <= losses.index(min(losses)), "reached where it is measured, at the latest"


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config(
        "run",
        sources="embedded",
        environment={"learner": "curves"},
        training={"steps": 4, "interval": 1},
        run={"tensorboard": False},
    )


def test_the_curve_of_a_run_begins_before_training(config: RunConfig) -> None:
    from pathlib import Path

    from mixgym.trainer.runs.folder import RunFolder

    finetune(config)
    records = RunFolder.open(config.run.dir).read_decisions()
    mine = curve_of(Path(config.run.dir))
    assert mine.tokens.tolist() == [0, *(record["cost"]["train_tokens"] for record in records)]
    assert mine.best[0] > mine.best[1] == records[0]["loss"]["reward_mean"]
