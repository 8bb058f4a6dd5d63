"""What an environment has measured: held-out losses, the reference's, and probes."""

from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.learners.base import Evaluation, ProbeResult, TrainReport
from mixgym.envs.measuring.probe_book import ProbeBook, take_probes, wanted_probes
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import PROBES
from mixgym.envs.world import World


class Measurements:
    """The measurements of one environment; the world that is measured is passed in.

    Args:
        options: which probes, how often, whether before the first decision.
        shape: (K, G).

    Attributes:
        start, before, now: the reward split before training, at the last decision and now.
        reference: the same by the reference model, or None.
        probes: what probes found last, and when.
        probe_tokens: what the last decision's probes cost.
    """

    start: Evaluation
    before: Evaluation
    now: Evaluation

    def __init__(self, options: EnvironmentOptions, shape: tuple[int, int]) -> None:
        self.probes = ProbeBook(wanted_probes(options), shape)
        self.reference: Evaluation | None = None
        self.probe_tokens = 0
        self._early = options.probe_at_start
        self._baseline = 0  # tokens that the probes' starting values took
        self._at_start: dict[str, ProbeResult] = {}
        self.known = False  # whether the start is measured
        # means over tokens of the last measurements, so that each is made once
        self._losses: list[tuple[Evaluation, tuple[FloatArray, FloatArray]]] = []

    def take_start(self, world: World) -> None:
        """What every episode on this model starts with; nothing may have been trained yet."""
        names = list(self.probes.periods)
        self.start = world.learner.evaluate("reward")
        self._baseline = world.learner.begin_probes(names) if names else 0
        self.reference = None if world.reference is None else world.reference()
        early = [name for name in names if self._early and PROBES[name].passes]
        self._at_start = {name: world.learner.probe(name) for name in early}
        constant = [name for name in names if PROBES[name].constant]
        self._at_start |= {name: ProbeResult(world.constants[name], 0) for name in constant}
        self.known = True

    def begin(self) -> tuple[int, int]:
        """Start an episode; returns the tokens of its held-out measurements and its probes."""
        self.before = self.now = self.start
        self.probes.clear()
        self.probe_tokens = 0
        self.probes.enter({name: result.values for name, result in self._at_start.items()})
        probed = sum(result.tokens for result in self._at_start.values())
        return self.start.tokens, self._baseline + probed

    def take(self, world: World, report: TrainReport, decision: int) -> tuple[int, int]:
        """Measure after the interval of ``decision``; returns tokens as :meth:`begin`.

        Raises:
            DivergenceError: if something is not finite; what was known before stays.
        """
        after = world.learner.evaluate("reward")
        found = take_probes(self.probes.due(decision), world, report, self.start)
        self.before, self.now = self.now, after
        self.probes.enter({name: result.values for name, result in found.items()})
        self.probe_tokens = sum(result.tokens for result in found.values())
        return after.tokens, self.probe_tokens

    def parts_of_view(self) -> dict[str, Any]:
        """What a :class:`~mixgym.envs.spaces.observations.View` holds of these."""
        known = self.reference
        kept = {id(measured): losses for measured, losses in self._losses}
        self._losses = [
            (measured, kept.get(id(measured)) or (measured.source_nll, measured.nll))
            for measured in (self.start, self.before, self.now)
        ]
        start, before, now = (losses for _, losses in self._losses)
        return {
            "nll": now[0],
            "nll_before": before[0],
            "nll_start": start[0],
            "cell_nll": now[1],
            "cell_nll_before": before[1],
            "cell_nll_start": start[1],
            "error": self.now.source_error,
            "cell_error": self.now.error,
            "nll_reference": None if known is None else known.source_nll,
            "cell_nll_reference": None if known is None else known.nll,
            "probes": self.probes.values,
            "probe_age": self.probes.age if self.probes.periods else None,
        }

    def fresh(self) -> dict[str, FloatArray]:
        """By name, the values that the last decision's probes found."""
        fresh = self.probes.fresh
        return {name: values for name, values in self.probes.values.items() if fresh[name]}

    def state(self) -> dict[str, Any]:
        """Plain data from which :meth:`set_state` continues."""
        early = {name: [r.values.tolist(), r.tokens] for name, r in self._at_start.items()}
        return {
            "evaluations": [_plain(e) for e in (self.start, self.before, self.now)],
            "reference": None if self.reference is None else _plain(self.reference),
            "probes": self.probes.state(),
            "probe_tokens": self.probe_tokens,
            "probes_at_start": [self._baseline, early],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.start, self.before, self.now = map(_evaluation, state["evaluations"])
        self.reference = None if state["reference"] is None else _evaluation(state["reference"])
        self.probes.set_state(state["probes"])
        self.probe_tokens = int(state["probe_tokens"])
        self._baseline, early = state["probes_at_start"]
        self._at_start = {
            name: ProbeResult(np.array(values, np.float64), tokens)
            for name, (values, tokens) in early.items()
        }
        self.known = True


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    whole = vars(evaluation)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in whole.items()}


def _evaluation(state: dict[str, Any]) -> Evaluation:
    return Evaluation(
        loss_sum=np.array(state["loss_sum"], np.float64),
        supervised=np.array(state["supervised"], np.int64),
        tokens=int(state["tokens"]),
        rows=np.array(state["rows"], np.int64),
        error=np.array(state["error"], np.float64),
        source_error=np.array(state["source_error"], np.float64),
    )
