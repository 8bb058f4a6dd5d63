"""Groups of environments that meet the same episodes, and are paid relative to each other."""

from typing import Any

import numpy as np
import pytest

from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.config import RunConfig
from mixgym.trainer.training.training_envs import FastTrainingEnv, Watched, group_of

SHAPE = {"learner": "curves", "max_sources": 4, "max_strata": 2}
TASKS = [sample_task(seed, sources=4, strata=2) for seed in range(5)]


def vector(group: int, **kwargs: Any) -> CurvesVecEnv:
    options = EnvironmentOptions.model_validate(SHAPE)
    return CurvesVecEnv(6, TASKS, options, seed=3, decisions=4, group=group, **kwargs)


def test_a_group_meets_the_same_episodes_one_after_the_other() -> None:
    env = vector(3)
    still = np.zeros((6, 4 + 8), np.float32)
    first = env.reset()
    for _ in range(9):  # over two ends of episodes
        assert np.array_equal(first[0], first[1])
        assert np.array_equal(first[0], first[2])
        assert not np.array_equal(first[0], first[3])
        first, *_ = env.step(still)
    env.seed(11)
    again = env.reset()
    assert np.array_equal(again[3], again[5])


def test_everyone_is_paid_what_it_earned_beyond_the_others_by_hand() -> None:
    seen: list[list[float]] = []
    env = Watched(vector(3), group=3)
    env.watch = lambda rewards, dones, infos: seen.append(rewards.tolist())
    env.venv.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 12)).astype(np.float32)
    _, paid, _, _ = env.step(actions)
    earned = np.array(seen[0])
    for i in range(3):
        others = (earned[:3].sum() - earned[i]) / 2
        assert paid[i] == pytest.approx(earned[i] - others, abs=1e-6)
    assert paid.reshape(2, 3).sum(1) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert np.abs(paid).max() > 1e-4


def test_alone_everyone_is_paid_what_it_earned() -> None:
    one, other = Watched(vector(1)), vector(1)
    one.venv.reset()
    other.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 12)).astype(np.float32)
    assert one.step(actions)[1].tolist() == other.step(actions)[1].tolist()


@pytest.mark.parametrize(
    ("train", "group"),
    [
        ({"algo": "ppo"}, 8),
        ({"algo": "ppo", "environments": 6}, 2),
        ({"algo": "ppo", "group": 1}, 1),
        ({"algo": "sac"}, 1),
        ({"algo": "ars"}, 1),
        ({"algo": "hbo"}, 1),
        ({"algo": "ppo", "level": "global"}, 8),
        ({"algo": "ppo", "level": "local"}, 1),
    ],
)
def test_who_is_grouped(train: dict[str, Any], group: int) -> None:
    assert group_of(RunConfig.model_validate({"train": train})) == group


@pytest.mark.usefixtures("few_tasks")
def test_a_grouped_training_goes_on_bit_equal(tmp_path: Any) -> None:
    config = RunConfig.model_validate({"train": {"environments": 4, "group": 2}})
    one, other = FastTrainingEnv(config), FastTrainingEnv(config)
    rng = np.random.default_rng(0)
    moves = rng.uniform(-1, 1, (40, 4, *one.env.action_space.shape)).astype(np.float32)
    one.env.reset()
    for move in moves[:20]:
        one.env.step(move)
    one.save(tmp_path)
    other.env.reset()
    other.load(tmp_path)
    for move in moves[20:]:
        mine, theirs = one.env.step(move), other.env.step(move)
        assert np.array_equal(mine[0], theirs[0])
        assert np.array_equal(mine[1], theirs[1])


def test_exact_pay_telescopes_over_true_losses_and_the_agent_still_sees_errors() -> None:
    still = np.zeros((6, 12), np.float32)
    cores = [vector(1, exact_rewards=exact).core for exact in (True, False)]
    paid = []
    for core in cores:
        core.reset()
        begun = core.start_nll()
        total = sum(core.step(still)[0] for _ in range(3))
        targets = core.task.targets / core.task.targets.sum(-1, keepdims=True)
        fall = (np.nan_to_num(begun - core.final_nll()) * targets).sum(-1)
        paid.append((total, fall))
    (exact, truth), (noisy, same) = paid
    assert exact == pytest.approx(truth, abs=1e-12)
    assert truth.tolist() == same.tolist()
    assert np.abs(noisy - truth).max() > 1e-4
    assert np.array_equal(cores[0].observe()[:, 3:], cores[1].observe()[:, 3:]), "but the reward"
