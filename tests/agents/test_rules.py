import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.agents.registry import ALGORITHMS
from mixgym.agents.rule import Rule, Signals, State
from mixgym.agents.rules import CostPower, Fixed, Proportional, Scripted, Temperature, Uniform
from mixgym.envs.arrays import FloatArray
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.mixture import Mixture
from mixgym.envs.spaces.observations import dict_observation
from mixgym.envs.spaces.view import View

NAMES = ("a", "b", "c")


def view(used: float = 0.0, **changes: Any) -> View:
    """Three sources of two strata with 800, 100 and 0 units."""
    size = np.array([[600.0, 200.0], [50.0, 50.0], [0.0, 0.0]])
    cells = np.ones((3, 2))
    values: dict[str, Any] = {
        "remaining": 1.0 - used,
        "reward": 0.0,
        "targets": np.ones(3),
        "prior": np.array([0.5, 0.5, 0.0]),
        "weight": np.array([0.5, 0.5, 0.0]),
        "share": np.zeros(3),
        "nll": np.ones(3),
        "nll_before": np.ones(3),
        "nll_start": np.ones(3),
        "nll_train": np.ones(3),
        "mean_nll": 1.0,
        "mean_nll_start": 1.0,
        "cell_size": size,
        "cell_prior": cells / 2,
        "cell_weight": cells / 2,
        "cell_epochs": np.zeros((3, 2)),
        "cell_nll": cells,
        "cell_nll_before": cells,
        "cell_nll_start": cells,
        "cost": np.ones(3),
        "cell_cost": cells,
        "error": np.full(3, np.nan),
        "cell_error": np.full((3, 2), np.nan),
        "available": size > 0,
    }
    return View(**{**values, **changes})


def observe(used: float = 0.0, shape: tuple[int, int] = (3, 2)) -> dict[str, np.ndarray]:
    return dict_observation(view(used), shape)[0]


def answer(rule: Rule, used: float = 0.0, shape: tuple[int, int] = (3, 2)) -> np.ndarray:
    """The normalised weights over sources."""
    action, _ = rule.predict(observe(used, shape))
    top = action[: shape[0]]
    assert (action >= 0).all()
    assert (action <= 1).all()
    return top / top.sum()


def strata(rule: Rule, used: float = 0.0, shape: tuple[int, int] = (3, 2)) -> np.ndarray:
    inner = rule.predict(observe(used, shape))[0][shape[0] :].reshape(shape)
    return inner / np.maximum(inner.sum(-1, keepdims=True), 1e-12)


# what the rules answer


def test_uniform_leaves_out_what_cannot_be_trained_on() -> None:
    assert answer(Uniform()).tolist() == [0.5, 0.5, 0.0]
    assert answer(Uniform(), shape=(5, 3)).tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]


def test_proportional_is_by_size() -> None:
    assert answer(Proportional()) == pytest.approx([8 / 9, 1 / 9, 0.0])


def test_temperature_by_hand() -> None:
    # 800 ** (1/3) / 100 ** (1/3) = 2
    assert answer(Temperature(tau=3.0)) == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert answer(Temperature(tau=1.0)) == pytest.approx(answer(Proportional()))
    assert answer(Temperature(tau=1e9)) == pytest.approx(answer(Uniform()))
    assert answer(Temperature(tau=1e-3)) == pytest.approx([1.0, 0.0, 0.0])


def test_fixed_is_what_is_given_zeros_included() -> None:
    rule = Fixed(None, NAMES, weights={"a": 3, "b": 1})
    assert answer(rule) == pytest.approx([0.75, 0.25, 0.0])
    assert (strata(rule) == 0).all(), "the natural shares"
    inner = Fixed(None, NAMES, weights={"b": 1}, strata={"b": [0, 2]})
    assert answer(inner).tolist() == [0.0, 1.0, 0.0]
    assert strata(inner).tolist() == [[0, 0], [0, 1], [0, 0]]


def test_scripted_by_hand() -> None:
    points = {0.5: {"b": 2.0, "a": 2.0}, 0.1: {"a": 1.0}, 0.9: {"b": 5.0}}
    rule = Scripted(None, NAMES, points=points)
    expected = {
        0.0: [1, 0, 0],  # before the first point
        0.1: [1, 0, 0],
        0.3: [0.75, 0.25, 0],  # half way to (.5, .5)
        0.5: [0.5, 0.5, 0],
        0.6: [0.375, 0.625, 0],  # a quarter of the way to (0, 1)
        0.9: [0, 1, 0],
        1.0: [0, 1, 0],  # after the last
    }
    for used, weights in expected.items():
        assert answer(rule, used) == pytest.approx(weights, abs=1e-6)
        assert answer(rule, used, (4, 3)) == pytest.approx([*weights, 0], abs=1e-6)


def test_scripted_reads_keys_that_are_text() -> None:
    numbers = Scripted(None, NAMES, points={0.0: {"a": 1}, 1.0: {"b": 1}})
    text = Scripted(None, NAMES, points={"0": {"a": 1}, "1.0": {"b": 1}})  # type: ignore[dict-item]
    for used in (0.0, 0.2, 1.0):
        assert answer(text, used).tolist() == answer(numbers, used).tolist()


def test_scripted_strata_move_from_easy_to_hard_in_every_source() -> None:
    rule = Scripted(None, NAMES, strata={0.0: [1, 0], 1.0: [0, 4]})
    assert answer(rule).tolist() == [0.5, 0.5, 0.0], "sources are alike without points"
    assert strata(rule, 0.25)[:2] == pytest.approx(np.array([[0.75, 0.25]] * 2), abs=1e-6)
    assert (strata(rule, 0.25)[2] == 0).all(), "nothing to train on there"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Temperature(tau=0.0), r"agent\.options\.tau=0\.0"),
        (lambda: Temperature(tau=-1), r"agent\.options\.tau=-1"),
        (lambda: Temperature(tau=float("nan")), r"agent\.options\.tau=nan"),
        (lambda: Temperature(tau="hot"), r"agent\.options\.tau=hot"),  # type: ignore[arg-type]
        (lambda: Fixed(None, NAMES), r"agent\.options\.weights"),
        (lambda: Fixed(None, NAMES, weights={"a": 0}), r"agent\.options\.weights"),
        (lambda: Fixed(None, NAMES, weights={"a": 2, "b": -1}), r"agent\.options\.weights"),
        (lambda: Fixed(None, NAMES, weights={"a": "x"}), r"agent\.options\.weights"),  # type: ignore[dict-item]
        (lambda: Fixed(None, NAMES, weights={"a": None}), r"agent\.options\.weights"),  # type: ignore[dict-item]
        (lambda: Fixed(None, NAMES, weights={"z": 1}), "'z' is not a source.*a, b, c"),
        (
            lambda: Fixed(None, NAMES, weights={"a": 1}, strata={"z": [1]}),
            r"agent\.options\.strata: 'z'",
        ),
        (
            lambda: Fixed(None, NAMES, weights={"a": 1}, strata={"a": [1, -2]}),
            r"agent\.options\.strata\.a",
        ),
        (lambda: Scripted(None, NAMES), r"agent\.options\.points"),
        (lambda: Scripted(None, NAMES, points={1.5: {"a": 1}}), r"points: 1\.5 is outside"),
        (lambda: Scripted(None, NAMES, points={"half": {"a": 1}}), r"agent\.options\.points"),  # type: ignore[dict-item]
        (lambda: Scripted(None, NAMES, points={None: {"a": 1}}), r"agent\.options\.points"),  # type: ignore[dict-item]
        (lambda: Scripted(None, NAMES, points={0.5: {"z": 1}}), r"points\.0\.5: 'z'"),
        (lambda: Scripted(None, NAMES, points={0.5: {"a": 0}}), r"points\.0\.5"),
        (lambda: Scripted(None, NAMES, strata={0.5: [0, 0]}), r"strata\.0\.5"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_more_strata_than_there_are_is_an_error_at_the_first_decision() -> None:
    for rule in (
        Fixed(None, NAMES, weights={"a": 1}, strata={"a": [1, 1, 1]}),
        Scripted(None, NAMES, strata={0: [1, 1, 1]}),
    ):
        with pytest.raises(ConfigError, match=r"agent\.options\.strata: 3 weights for 2 strata"):
            rule.predict(observe())


# the face of a rule


def rules() -> list[Rule]:
    return [
        Uniform(None, NAMES),
        Proportional(None, NAMES),
        Temperature(None, NAMES, tau=2.0),
        CostPower(None, NAMES, size_exponent=0.3, pool=0.5),
        Fixed(None, NAMES, weights={"a": 1, "b": 2}, strata={"a": [1, 3]}),
        Scripted(None, NAMES, points={0.0: {"a": 1}, 0.5: {"b": 1}}, strata={0.0: [1, 3]}),
    ]


def test_every_rule_of_the_registry_is_tested_here() -> None:
    factories = [algorithm.factory for algorithm in ALGORITHMS.values()]
    mine = {f.split(":")[1] for f in factories if f.startswith("mixgym.agents.rules:")}
    assert mine == {type(rule).__name__ for rule in rules()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: type(rule).__name__)
def test_predict_works_with_and_without_a_batch_axis(rule: Rule) -> None:
    seen = [observe(used) for used in (0.0, 0.3, 0.8)]
    batch = {name: np.stack([o[name] for o in seen]) for name in seen[0]}
    actions, state = rule.predict(batch)
    assert state is None
    assert actions.shape == (3, 9)
    assert actions.dtype == np.float32
    for one, action in zip(seen, actions, strict=True):
        assert rule.predict(one)[0].tolist() == action.tolist()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: type(rule).__name__)
def test_a_saved_rule_answers_the_same(rule: Rule, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    rule.save(path)
    json.loads(path.read_text())
    again = type(rule).load(path)
    assert again.names == rule.names
    for used in (0.0, 0.3, 1.0):
        assert again.predict(observe(used))[0].tolist() == rule.predict(observe(used))[0].tolist()
    with pytest.raises(ValueError, match="holds the rule"):
        next(type(r) for r in rules() if type(r) is not type(rule)).load(path)


def make_env(**training: Any) -> MixtureEnv:
    options = {"steps": 50, "interval": 10, **training}
    return make_mixture_env(
        training=options, environment={"action": "weights", "observation": "dict"}
    )


def make_vector(count: int = 1) -> DummyVecEnv:
    return DummyVecEnv([make_env] * count)


class Stop(BaseCallback):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        assert {"actions", "rewards", "dones", "infos"} <= set(self.locals)
        return self.n_calls < self.after


def test_learn_counts_decisions_and_stops_when_a_callback_says_so() -> None:
    rule = Uniform(make_vector(2))
    assert rule.learn(7).num_timesteps == 8, "two at a time"
    assert rule.learn(4, reset_num_timesteps=False).num_timesteps == 12
    assert rule.learn(100, callback=Stop(3)).num_timesteps == 6
    assert rule.learn(100, callback=[Stop(5), Stop(2)]).num_timesteps == 4
    seen = []
    rule.learn(6, callback=lambda inner, _: seen.append(len(inner["infos"])) or True)
    assert seen == [2, 2, 2]


def test_learn_wants_an_environment() -> None:
    with pytest.raises(ValueError, match="pass env="):
        Uniform().learn(1)


def test_tools_of_stable_baselines_take_a_rule() -> None:
    rule = Proportional(make_vector())
    mean, _ = evaluate_policy(rule, make_vector(), n_eval_episodes=2, warn=False)  # type: ignore[arg-type]
    callback = EvalCallback(make_vector(), n_eval_episodes=1, eval_freq=5, verbose=0, warn=False)
    rule.learn(5, callback=callback)
    assert callback.last_mean_reward == pytest.approx(mean, abs=0.1), "other measurement noise"


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Uniform(None, n),
        lambda n: Proportional(None, n),
        lambda n: Temperature(None, n, tau=5.0),
        lambda n: Fixed(None, n, weights={n[1]: 0.3, n[2]: 0.7}, strata={n[1]: [0, 1]}),
        lambda n: Scripted(None, n, points={0: {n[0]: 1}, 1: {n[3]: 1}}, strata={0: [3, 1]}),
    ],
)
def test_the_environment_does_what_the_rule_asked(make: Any) -> None:
    env = make_env()
    rule, frame_of = make(env.world.names), env.reset(seed=0)
    observation = frame_of[0]
    for _ in range(5):
        signals = rule.predict(observation)[0].astype(float)
        top = signals[:4] / signals[:4].sum()
        inner = signals[4:].reshape(4, -1)
        observation, _, _, _, info = env.step(rule.predict(observation)[0])
        record = info["decision"]
        assert list(record["mixture"].values()) == pytest.approx(top.tolist(), abs=1e-6)
        assert list(record["share"].values()) == pytest.approx(top.tolist(), abs=1e-3)
        for name, row, prior in zip(env.world.names, inner, env.world.prior.strata, strict=True):
            wanted = row / row.sum() if row.any() else prior
            assert record["strata"][name] == pytest.approx(wanted.tolist(), abs=1e-6)


# memory


class Counter(Rule):
    """Gives all weight to source (calls so far) modulo 2."""

    state_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((1,), (2, 2))

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        calls, _ = memory
        top = np.zeros(len(signals.trainable))
        top[int(calls[0]) % 2] = 1.0
        calls[0] += 1
        return top, None


def stacked(count: int) -> dict[str, np.ndarray]:
    return {name: np.stack([values] * count) for name, values in observe().items()}


def test_memory_travels_in_the_state_and_is_cleared_by_episode_start() -> None:
    rule, batch = Counter(), stacked(2)
    actions, state = rule.predict(batch)
    assert actions[:, :2].tolist() == [[1, 0], [1, 0]]
    assert state is not None
    assert [array.shape for array in state] == [(2, 1), (2, 2, 2)]
    actions, state = rule.predict(batch, state, np.array([False, True]))
    assert actions[:, :2].tolist() == [[0, 1], [1, 0]]
    assert state is not None
    assert state[0].ravel().tolist() == [2, 1]


def test_predict_leaves_the_state_that_it_is_given_alone() -> None:
    rule, batch = Counter(), stacked(1)
    _, state = rule.predict(batch)
    assert state is not None
    first = rule.predict(batch, state, np.array([False]))
    second = rule.predict(batch, state, np.array([False]))
    assert first[0].tolist() == second[0].tolist()
    rule.predict(batch, state, np.array([True]))
    assert state[0].tolist() == [[1.0]]


class Watch(BaseCallback):
    def _on_step(self) -> bool:
        self.model.seen.append(int(self.locals["actions"][0, 0]))  # type: ignore[attr-defined]
        return True


def test_learn_clears_memory_where_an_episode_starts_and_where_it_starts_anew() -> None:
    rule = Counter(make_vector())
    rule.seen = []  # type: ignore[attr-defined]
    rule.learn(7, callback=Watch())
    # episodes of five decisions
    assert rule.seen == [1, 0, 1, 0, 1, 1, 0]  # type: ignore[attr-defined]
    rule.seen.clear()  # type: ignore[attr-defined]
    rule.learn(1, callback=Watch(), reset_num_timesteps=False)
    assert rule.seen == [1], "goes on"  # type: ignore[attr-defined]
    rule.learn(1, callback=Watch())
    assert rule.seen == [1, 1], "begins"  # type: ignore[attr-defined]


def test_memory_may_be_kept_as_plain_data() -> None:
    rule, other = Counter(make_vector()), Counter(make_vector())
    assert rule.memory() is None
    rule.learn(3)
    kept = json.loads(json.dumps(rule.memory()))
    other.set_memory(kept)
    assert other.memory() == kept
    assert kept[0] == [[3.0]]


def test_a_mixture_said_by_a_rule_is_exact() -> None:
    env = make_env()
    observation, _ = env.reset(seed=0)
    rule = Fixed(None, env.world.names, weights={env.world.names[0]: 1.0})
    env.step(rule.predict(observation)[0])
    wanted = Mixture(np.array([1.0, 0, 0, 0]), env.world.prior.strata)
    assert env.progress.history == [wanted.sources.tolist()]
