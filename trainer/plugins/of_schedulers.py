"""What rules and trained algorithms have to hold, in the fast world."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.registry import Algorithm
from mixgym.agents.rule import Rule
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.plugins.checking import (
    Check,
    FlawError,
    need,
    need_close,
    need_same,
    need_summary,
)

_TASKS = (3, 4, 5)
_DECISIONS = 6


def checks(word: str, algorithm: Algorithm) -> Iterator[Check]:
    """The checks of an algorithm: one that is trained, or one that acts at once."""
    yield "summary", lambda: need_summary(algorithm.summary)
    if algorithm.training is not None:
        yield from _of_trained(word)
    if not algorithm.is_trained:
        yield from _of_acting(algorithm)


# --- acting at once ---------------------------------------------------------------------------


def _of_acting(algorithm: Algorithm) -> Iterator[Check]:
    yield "options explained", lambda: _explained(algorithm)
    yield "finite", lambda: _finite(algorithm)
    yield "deterministic", lambda: _deterministic(algorithm)
    yield "batched equals single", lambda: _batched(algorithm)
    yield "memory in the state", lambda: _memory(algorithm)
    yield "saved and loaded", lambda: _saved(algorithm)
    yield "cost declared", lambda: _cost(algorithm)


def _world(algorithm: Algorithm) -> CurvesVecEnv:
    """Several tasks in the environment that a rule asks for."""
    needs = algorithm.needs({})
    options: dict[str, Any] = {
        "learner": "curves",
        "action": needs.action,
        "observation": needs.observation,
        "probes": needs.probes,
        "step_rule": needs.step_rule,
        **({"reference": "curves"} if needs.reference else {}),
        **needs.settings,
    }
    return CurvesVecEnv(len(_TASKS), list(_TASKS), EnvironmentOptions(**options), seed=0)


def _episode(algorithm: Algorithm) -> Iterator[tuple[Any, Any, Any]]:
    """Decisions in a row, each before it is taken: what was seen, the state, the action."""
    world, agent = _world(algorithm), algorithm.load()(None, names=())
    seen, state, start = world.reset(), None, np.ones(len(_TASKS), np.bool_)
    for _ in range(_DECISIONS):
        action, after = agent.predict(seen, state, start)
        yield seen, state, action
        state = after
        seen, _, start, _ = world.step(action)


def _explained(algorithm: Algorithm) -> str:
    from mixgym.agents.agent_options import _of_callable

    found = _of_callable(algorithm.load(), {}, "")
    silent = [option.name for option in found if not option.about]
    need(
        not silent,
        f"nothing says what {', '.join(silent)} means; write a section Args: in the class's "
        "docstring, a line `name: meaning` each (`mixgym list options` shows it)",
    )
    return ", ".join(option.name for option in found) or "it takes none"


def _finite(algorithm: Algorithm) -> str:
    space = _world(algorithm).action_space
    for decision, (_, _, action) in enumerate(_episode(algorithm), 1):
        actions = np.asarray(action)
        wanted = (len(_TASKS), *(space.shape or ()))
        need(
            actions.shape == wanted,
            f"actions have the shape {actions.shape} for {len(_TASKS)} environments; it has to be "
            f"{wanted}",
        )
        need(
            bool(np.isfinite(actions).all()),
            f"decision {decision}: an action holds {actions[~np.isfinite(actions)][:1]}; guard "
            "divisions and logarithms, and what is unknown in signals (NaN in probes)",
        )
        if algorithm.needs({}).action == "weights":
            need(
                bool((actions >= 0).all() and actions.any(-1).all()),
                f"decision {decision}: weights are negative, or all 0; give a source that can be "
                "trained on (signals.trainable) a weight above 0",
            )
    return f"{_DECISIONS} decisions in {len(_TASKS)} tasks"


def _deterministic(algorithm: Algorithm) -> str:
    for one, other in zip(_episode(algorithm), _episode(algorithm), strict=True):
        need_same(
            one[2],
            other[2],
            "two agents made alike decided differently on the same tasks; take random numbers from "
            "a generator that is seeded by an option, and keep its state in the state",
        )
    return "twice the same"


def _rows(values: Any, index: slice) -> Any:
    """Some environments of a batch."""
    if isinstance(values, dict):
        return {name: part[index] for name, part in values.items()}
    if isinstance(values, tuple):
        return tuple(part[index] for part in values)
    return None if values is None else values[index]


def _batched(algorithm: Algorithm) -> str:
    agent = algorithm.load()(None, names=())
    start = np.zeros(1, np.bool_)
    for seen, state, action in _episode(algorithm):
        for index in reversed(range(len(_TASKS))):
            own = slice(index, index + 1)
            before = _rows(state, own)
            alone, _ = agent.predict(_rows(seen, own), before, start)
            need_close(
                np.asarray(alone)[0],
                np.asarray(action)[index],
                f"environment {index} gets another action in a batch than alone; decide for each "
                "by itself, and keep memory in the state, not in the agent",
            )
    return f"{len(_TASKS)} environments together and alone"


def _copied(values: Any) -> Any:
    if isinstance(values, tuple):
        return tuple(np.array(part) for part in values)
    if isinstance(values, dict):
        return {name: np.array(part) for name, part in values.items()}
    return None if values is None else np.array(values)


def _memory(algorithm: Algorithm) -> str:
    agent = algorithm.load()(None, names=())
    start = np.zeros(len(_TASKS), np.bool_)
    for seen, state, action in _episode(algorithm):
        kept = _copied(state), _copied(seen)
        first, _ = agent.predict(seen, state, start if state is not None else None)
        again, _ = agent.predict(seen, state, start if state is not None else None)
        need_same(
            np.asarray(first),
            np.asarray(again),
            "asked twice about the same, it answers differently; what it remembers belongs into "
            "the state (state_shapes and memory of mixgym.agents.rule.Rule)",
        )
        need_same(
            (state, seen),
            kept,
            "predict changes the state or the observation that it is given; work on copies",
        )
        need_close(first, action, "the same state gave another action in another agent")
    return "asked twice, it answers the same"


def _saved(algorithm: Algorithm) -> str:
    agent = algorithm.load()(None, names=())
    if not isinstance(agent, Rule):
        return "not looked at: it is no mixgym.agents.rule.Rule"
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "rule.json")
        loaded = type(agent).load(Path(folder) / "rule.json")
    need_same(
        agent.options(),
        loaded.options(),
        "options differ after save and load; let options() return every keyword of the constructor",
    )
    from mixgym.agents.agent_options import _of_callable

    lacking = {o.name for o in _of_callable(algorithm.load(), {}, "")} - set(agent.options())
    need(
        not lacking,
        f"options() leaves out {', '.join(sorted(lacking))}; return every keyword of the "
        "constructor, so that a saved rule is the same one",
    )
    return "as JSON"


def _cost(algorithm: Algorithm) -> str:
    """What is read and not asked for is missed when the agent decides without it."""
    needs = algorithm.needs({})
    if not needs.probes:
        return "reads no probe"
    named = ", ".join(f"{name} every {period}" for name, period in needs.probes.items())
    for name, period in needs.probes.items():
        need(period >= 1, f"the period of {name} is {period}; give decisions, at least 1")
    return f"asks for {named} decisions"


# --- trained ----------------------------------------------------------------------------------


def _of_trained(word: str) -> Iterator[Check]:
    yield "trains in the fast world", lambda: _trains(word)
    yield "deterministic by seed", lambda: _repeats(word)
    yield "resumes from a checkpoint", lambda: _resumes(word)
    yield "leaves an agent", lambda: _exports(word)


def _config(word: str) -> Any:
    """A short training of a few environments, the preset's rollouts cut short."""
    from mixgym.trainer.config import RunConfig
    from mixgym.trainer.training.algorithms import training_needs

    base = RunConfig.model_validate({"train": {"algo": word, "environments": 2, "group": 1}})
    needs = training_needs(base)
    update = {"action": needs.action, "learner": "curves", **needs.settings}
    return base.model_copy(update={"environment": base.environment.model_copy(update=update)})


def _trained(word: str, rounds: int = 1) -> Any:
    from mixgym.envs.curves.vector import CurvesVecEnv as World
    from mixgym.trainer.training.algorithms import make_algorithm

    config = _config(word)
    world = World(2, list(range(8)), config.environment, seed=0)
    algorithm: Any = make_algorithm(config, world)
    algorithm.learn(rounds * _round(algorithm))
    return algorithm


def _round(algorithm: Any) -> int:
    """Decisions that reach an update."""
    starts = int(getattr(algorithm, "learning_starts", 0))
    return starts + 2 * int(getattr(algorithm, "n_steps", 1)) * int(algorithm.n_envs)


def _weights(algorithm: Any) -> dict[str, NDArray[Any]]:
    return {name: p.cpu().numpy().copy() for name, p in algorithm.policy.state_dict().items()}


def _trains(word: str) -> str:
    from mixgym.trainer.training.algorithms import updates_of

    algorithm = _trained(word)
    bad = [n for n, p in _weights(algorithm).items() if not np.isfinite(p).all()]
    need(
        not bad,
        f"parameters are NaN or infinite after a short training ({bad[:1]}); train less "
        "hard: a smaller learning rate, clipped gradients",
    )
    updates = updates_of(algorithm)
    if not updates:
        raise FlawError(
            f"{algorithm.num_timesteps} decisions led to no update (_n_updates is 0); call "
            "super().train(), or count in self._n_updates"
        )
    return f"{algorithm.num_timesteps} decisions, {updates} updates"


def _repeats(word: str) -> str:
    need_same(
        _weights(_trained(word)),
        _weights(_trained(word)),
        "two trainings with the same seed left different parameters; take random numbers from "
        "torch's generator, which is seeded",
    )
    return "twice the same parameters"


def _resumes(word: str) -> str:
    from mixgym.trainer.training.algorithms import load_algorithm, save_algorithm

    algorithm = _trained(word)
    with tempfile.TemporaryDirectory() as folder:
        save_algorithm(algorithm, Path(folder))
        loaded = load_algorithm(Path(folder), algorithm.get_env(), _config(word))
    need_same(
        _weights(algorithm),
        _weights(loaded),
        "parameters differ after save and load; name further networks in _get_torch_save_params",
    )
    return "the same parameters"


def _exports(word: str) -> str:
    from mixgym.agents.policies.composed import load_agent
    from mixgym.agents.policies.export import export_policy

    algorithm = _trained(word)
    seen = algorithm.get_env().reset()
    wanted, _ = algorithm.predict(seen, deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        export_policy(algorithm.policy, Path(folder), {"action": _config(word).environment.action})
        agent = load_agent(Path(folder), algorithm.get_env())
        found, _ = agent.predict(seen)
    need_close(
        found,
        wanted,
        "the exported agent decides otherwise than the algorithm; let predict be the policy's",
    )
    return "which decides as the algorithm does"
