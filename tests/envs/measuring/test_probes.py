"""Probes in the environment: periods, observation, record, cost, state; and on curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env

from mixgym.agents.rule import read_signals
from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.dynamics import CurveState, advance, mastery, nll
from mixgym.envs.curves.learner import CurveLearner
from mixgym.envs.curves.probes import Seen, probe, reference_losses, reference_state
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import FAILURE_PENALTY, MixtureEnv
from mixgym.envs.errors import DivergenceError
from mixgym.envs.measuring.probe_book import ProbeBook, wanted_probes
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import PROBES
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.observations import parts_of
from mixgym.envs.spaces.signals import AGE, PREFIX, SIGNALS, ZERO

from ..synthetic import hand_task

MEASURED = [name for name, kind in PROBES.items() if kind.passes]
PERIODS = {"gradient_norm": 2, "perplexity_ratio": 1, "training_loss_ratio": 3}


def make(**environment: Any) -> MixtureEnv:
    environment = {"observation": "dict", "probes": PERIODS, **environment}
    return make_mixture_env(training={"steps": 60, "interval": 10}, environment=environment)


def signals_of(observation: dict[str, Any]) -> Any:
    return read_signals(parts_of({name: v[None] for name, v in observation.items()}), 0)


def zero(env: MixtureEnv) -> Any:
    return np.zeros(env.action_space.shape, np.float32)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": {"gradient_nrom": 1}}, "did you mean gradient_norm?"),
        ({"probes": {"gradient_norm": 0}}, "greater than or equal to 1"),
        ({"reward_sources": "loss"}, "loss is a probe of the other level; give one of a source"),
        ({"reward_strata": "gradient_norm"}, "give one of a stratum"),
    ],
)
def test_what_is_not_a_probe_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("?", r"\?")):
        EnvironmentOptions(**options)


def test_rewards_ask_for_what_they_read() -> None:
    assert wanted_probes(EnvironmentOptions()) == {}
    asked = EnvironmentOptions(reward="linear", reward_strata="loss", probes={"loss": 3})
    assert wanted_probes(asked) == {"gradient_norm": 1, "loss": 3}


# --- periods and records ----------------------------------------------------------------------


def test_probes_run_in_their_periods_only() -> None:
    env = make()
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert observation[AGE].tolist() == [-1, -1, -1]
    assert all(np.isnan(values).all() for values in signals_of(observation).probes.values())
    ages = []
    for decision in range(1, 7):
        observation, _, _, _, info = env.step(zero(env))
        record, signals = info["decision"], signals_of(observation)
        due = {name for name, period in PERIODS.items() if decision % period == 0}
        assert record["probes"].keys() == due
        assert signals.fresh == {name: name in due for name in PERIODS}
        assert env.observation_space.contains(observation)
        ages.append(observation[AGE].tolist())
        for name in due:
            for k, source in enumerate(env.world.names):
                value = np.ravel(record["probes"][name][source])
                assert np.ravel(signals.probes[name][k]) == pytest.approx(value, rel=1e-6)
    assert ages == [[-1, 0, -1], [0, 0, -1], [1, 0, 0], [0, 0, 1], [1, 0, 2], [0, 0, 0]]


def test_nothing_is_recorded_of_probes_that_nobody_asked_for() -> None:
    env = make(probes={})
    observation, _ = env.reset(seed=1)
    record = env.step(zero(env))[4]["decision"]
    assert "probes" not in record
    assert record["cost"]["probe_tokens"] == 0
    assert not any(name.startswith("probe") for name in observation)


def test_costs_add_up_and_the_start_is_charged_to_every_episode() -> None:
    env = make(probe_at_start=True)
    cells = int((env.world.cell_size > 0).sum())
    row = cells * 8 * 100  # 8 rows of 100 tokens, pretended
    for _ in range(2):
        observation, _ = env.reset(seed=1)
        assert observation[AGE].tolist() == [0, 0, -1]  # training has not been measured
        assert (signals_of(observation).probes["perplexity_ratio"] == 1).all()
        spent = [env.progress.probed]
        for _ in range(6):
            spent.append(env.step(zero(env))[4]["decision"]["cost"]["probe_tokens"])
        # at the start: a pass for the baseline, 3 for the norm, 1 for the ratio
        assert spent == [row * n for n in (5, 6, 10, 11, 15, 16, 20)]


def test_training_losses_are_a_probe_that_costs_nothing() -> None:
    env = make(probes={"training_loss_ratio": 1}, action="weights")
    env.reset(seed=1)
    start = env.measurements.start.nll
    action = zero(env)
    action[0] = 1.0  # the first source only
    observation, *_, info = env.step(action)
    found = signals_of(observation)
    trained = found.cells["nll_train"][0]
    expected = np.exp(trained - start[0])
    assert found.probes["training_loss_ratio"][0] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(found.probes["training_loss_ratio"][1:]).all()
    assert info["decision"]["probes"]["training_loss_ratio"].keys() == {env.world.names[0]}
    assert info["decision"]["cost"]["probe_tokens"] == 0
    assert (found.cells["nll_train"][1:] == 0).all()


def test_a_probe_that_is_exactly_zero_is_known() -> None:
    env = make(probes={"nll_difference": 1}, probe_at_start=True)
    observation, _ = env.reset(seed=1)
    assert np.unique(observation[PREFIX + "nll_difference"]).tolist() == [np.float32(ZERO)]
    assert np.isfinite(signals_of(observation).probes["nll_difference"]).all()


def test_a_probe_that_is_not_finite_ends_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make()
    env.reset(seed=1)
    env.step(zero(env))

    def broken(name: str) -> Any:
        raise DivergenceError(f"the probe {name} of source 'a' is not finite")

    monkeypatch.setattr(env.world.learner, "probe", broken)
    _, reward, terminated, _, info = env.step(zero(env))
    assert (reward, terminated) == (FAILURE_PENALTY, True)
    assert info["failure"].startswith("the probe gradient_norm of source 'a' is not finite")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 20))
def test_the_book_agrees_with_counting(periods: list[int], decisions: int) -> None:
    names = sorted(MEASURED[: len(periods)])
    book = ProbeBook(dict(zip(names, periods, strict=True)), (2, 2))
    for decision in range(1, decisions + 1):
        found = {n: np.full_like(book.values[n], decision) for n in book.due(decision)}
        book.enter(found)
        again = ProbeBook(book.periods, (2, 2))
        again.set_state(json.loads(json.dumps(book.state())))
        for other in (book, again):
            for name, period, age in zip(names, periods, other.age.tolist(), strict=True):
                last = decision - decision % period
                assert age == (decision - last if last else -1)
                value = float(np.ravel(other.values[name])[0])
                assert value == last if last else np.isnan(value)


# --- state ------------------------------------------------------------------------------------


def test_an_episode_goes_on_bit_equal_after_snapshots_forks_and_files(tmp_path: Path) -> None:
    def fresh() -> MixtureEnv:
        return make(reward="log_utility", probe_at_start=True, reference="here", tasks="train")

    env = fresh()
    env.reset(seed=4)
    for _ in range(3):
        env.step(zero(env))
    env.save(tmp_path)
    restored, loaded = fresh(), fresh()
    restored.reset(seed=9)
    restored.restore(env.snapshot())
    loaded.reset(seed=8)
    first = loaded.load(tmp_path)
    assert first[AGE].tolist() == [1, 0, 0]
    twins = [env, restored, loaded, env.fork()]
    for _ in range(3):
        steps = [twin.step(zero(twin)) for twin in twins]
        for observation, reward, _, _, info in steps[1:]:
            assert reward == steps[0][1]
            assert info["decision"]["probes"] == steps[0][4]["decision"]["probes"]
            assert info["decision"]["cost"] == steps[0][4]["decision"]["cost"]
            for name, values in observation.items():
                assert values.tolist() == steps[0][0][name].tolist()
    for twin in twins[:3]:  # and in the next episode, which starts from what was measured once
        observation, _ = twin.reset(seed=3)
        assert observation[AGE].tolist() == [0, 0, -1]


def test_a_batch_goes_on_bit_equal() -> None:
    options = EnvironmentOptions(
        learner="curves", observation="dict", probes=PERIODS, reward="arm", probe_at_start=True
    )
    first, second = (CurvesVecEnv(3, options=options, seed=s, decisions=4) for s in (1, 2))
    first.reset()
    second.reset()
    action = np.zeros((3, *first.action_space.shape), np.float32)  # type: ignore[misc]
    first.step(action)
    second.set_state(first.state())
    for _ in range(6):
        a: Any
        b: Any
        a, rewards, _, _ = first.step(action)
        b, others, _, _ = second.step(action)
        assert rewards.tolist() == others.tolist()
        for name, values in a.items():
            assert values.tolist() == b[name].tolist()


def test_checkers_accept_the_observation_with_probes() -> None:
    probes = dict.fromkeys(PROBES, 1)
    check_env(make(probes=probes, reference="here", step_rule="bilevel"))


# --- curves -----------------------------------------------------------------------------------


def seen(task: Any, given: Any = None) -> Seen:
    state = CurveState.start(task)
    if given is not None:
        state = advance(task, state, np.asarray(given, np.float64))
    return Seen(task, state, mastery(task, state), reference_losses(task)[1])


def test_falls_are_the_derivatives_of_the_losses() -> None:
    task = sample_task(3, sources=5, strata=3, noise_sources=1)
    rng = np.random.default_rng(0)
    whole = seen(task, rng.uniform(0, 1e-2, task.size.shape) * float(task.budget))
    falls, share = whole.falls(), task.size / task.size.sum(-1, keepdims=True)
    mean = task.present / task.present.sum(-1, keepdims=True)
    for k in range(5):
        small = 1e-6 * float(task.budget)
        tokens = np.zeros_like(task.size)
        tokens[k] = small * share[k]
        after = advance(task, whole.state, tokens)
        fall = (nll(task, whole.state) - nll(task, after)) * mean
        assert falls[:, k] == pytest.approx(fall.sum(-1) / small * task.budget, rel=2e-3, abs=1e-6)


def test_gradients_of_two_sources_by_hand() -> None:
    # before training the slope is amplitude * exponent / scale = 0.1; times the budget, 100
    whole, still = seen(hand_task()), np.zeros((2, 1))
    assert whole.falls() == pytest.approx(np.array([[100.0, 0.0], [50.0, 100.0]]))
    norm = np.sqrt(100.0 + 0.25 * 2.5)
    assert probe("gradient_norm", whole, still) == pytest.approx([norm, norm])
    inner = np.array([75.0, 50.0])  # targets (1/2, 1/2)
    length = np.sqrt(62.5)
    assert probe("gradient_alignment", whole, still) == pytest.approx(inner / length)
    assert probe("gradient_cosine", whole, still) == pytest.approx([0.75, 0.5])
    assert probe("gradient_influence", whole, still) == pytest.approx([50.0, 0.0])
    assert probe("cosine_similarity", whole, still) == pytest.approx([0.625, 0.625])


def test_losses_of_two_sources_by_hand() -> None:
    task = hand_task()
    whole, still = seen(task, [[30.0], [0.0]]), np.zeros((2, 1))
    # effective 30 and 15 over a scale of 10: mastery 1 - (1 + 3) ** -0.5 and 1 - 2.5 ** -0.5
    fall = 2 * np.array([[0.5], [1 - 2.5**-0.5]])
    assert probe("nll_difference", whole, still) == pytest.approx(-fall)
    assert probe("perplexity_ratio", whole, still) == pytest.approx(np.exp(-fall))
    assert probe("loss", whole, still) == pytest.approx(2.5 - fall)
    assert probe("loss_ratio", whole, still) == pytest.approx(1 - fall / 2.5)
    assert probe("ifd_ratio", whole, still) == pytest.approx(np.exp(-fall / 2))


@pytest.mark.parametrize("name", MEASURED)
def test_curves_have_every_probe_with_a_little_noise(name: str) -> None:
    task = sample_task(5)
    whole = seen(task, task.size * 0.1)
    rng = np.random.default_rng(1)
    still = probe(name, whole, np.zeros(task.size.shape))
    assert np.isfinite(still).all()
    noisy = probe(name, whole, rng.standard_normal(task.size.shape))
    assert (noisy != still).any()
    np.testing.assert_allclose(noisy, still, rtol=60 * float(task.noise.max()) + 1e-9)


def test_a_start_is_compared_with_itself_exactly() -> None:
    task = sample_task(5)
    learner = CurveLearner(task, seed=3)
    for name, value in (("perplexity_ratio", 1), ("nll_difference", 0), ("loss_ratio", 1)):
        assert (learner.probe(name).values == value).all()


def test_a_source_of_noise_keeps_a_norm_that_others_lose() -> None:
    task = sample_task(0, sources=3, strata=2, noise_sources=1)
    junk = int(np.argmin(task.amplitude.sum(-1)))
    still = np.zeros(task.size.shape)
    start = probe("gradient_norm", seen(task), still)
    after = probe("gradient_norm", seen(task, np.full_like(task.size, 0.3 * task.budget)), still)
    lost = 1 - after / start
    assert lost[junk] < 0.4 < 0.7 < np.delete(lost, junk).min()


def test_the_reference_has_had_the_whole_budget_by_size() -> None:
    task = sample_task(2, sources=4, strata=2)
    state = reference_state(task)
    assert state.given.sum() == pytest.approx(float(task.budget))
    assert state.given / state.given.sum() == pytest.approx(task.size / task.size.sum())
    env = make(reference="here", probes={}, prior="proportional")
    observation, _ = env.reset(seed=1)
    before = signals_of(observation)
    assert (before.sources["nll_reference"] < before.sources["nll"]).all()
    for _ in range(6):
        observation, *_ = env.step(zero(env))
    found = signals_of(observation)
    # the prior has a floor of uniform in it, and the reference no measurement noise
    assert found.sources["nll_reference"] == pytest.approx(found.sources["nll"], rel=0.1)
    assert found.cells["nll_reference"] == pytest.approx(found.cells["nll"], rel=0.15)


def test_there_is_no_reference_unless_it_is_asked_for() -> None:
    observation, _ = make().reset(seed=1)
    assert not signals_of(observation).sources["nll_reference"].any()
    core = CurvesCore(2, [0, 1], EnvironmentOptions(learner="curves", observation="dict"))
    core.reset()
    assert core.observe()["signals"].shape == (2, 12 * len(SIGNALS))
