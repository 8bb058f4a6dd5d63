"""Ways to batch a data set, by name, each giving the same face: a layout."""

from collections.abc import Callable
from dataclasses import dataclass

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.layout import Layout
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.envs.random_streams import stream
from mixgym.trainer.simulate.padded import padded_layout

_WINDOW_STEPS = 8


@dataclass(frozen=True)
class Scenario:
    """What is batched for what.

    Attributes:
        lengths: int64[n], tokens of each document.
        groups: of the hierarchy; the longest alone serves methods of one length.
        cluster: devices and tokens in a step.
        seed: of every random order.
    """

    lengths: IntArray
    groups: tuple[Group, ...]
    cluster: Cluster
    seed: int


@dataclass(frozen=True)
class Method:
    """A way to batch.

    Attributes:
        summary: one line.
        layout: scenario -> layout.
    """

    summary: str
    layout: Callable[[Scenario], Layout]


def _padded(**options: bool) -> Callable[[Scenario], Layout]:
    def layout(scenario: Scenario) -> Layout:
        generator = stream(scenario.seed, "simulate", "padded")
        group = scenario.groups[-1]
        return padded_layout(scenario.lengths, group, scenario.cluster, generator, **options)

    return layout


def _packed(
    packer: str,
    *,
    hierarchy: bool = False,
    balance: Balance | None = None,
    fill: float = 0.25,
) -> Callable[[Scenario], Layout]:
    def layout(scenario: Scenario) -> Layout:
        config = PlanConfig(
            scenario.groups if hierarchy else scenario.groups[-1:],
            scenario.cluster,
            packer,
            balance or Balance(),
            fill,
        )
        return make_plan(scenario.lengths, config, scenario.seed).layout

    return layout


_UNSORTED = Balance(sort=False)

METHODS: dict[str, Method] = {
    "padded": Method("one document per replica at a time", _padded(in_order=False, budget=False)),
    "padded_budget": Method(
        "as many documents as fit with their padding", _padded(in_order=False, budget=True)
    ),
    "longalign_sorted": Method(
        "sorted by length, one document per replica at a time",
        _padded(in_order=True, budget=False),
    ),
    "sorted_budget": Method(
        "sorted by length, as many as fit with their padding", _padded(in_order=True, budget=True)
    ),
    "sorted_budget_shuffled": Method(
        "the same, with the batches dealt to replicas at random",
        _padded(in_order=True, budget=True, shuffle_batches=True),
    ),
    "longalign_pack": Method("one length, next fit", _packed("next_fit", balance=_UNSORTED)),
    "first_fit_decreasing": Method(
        "one length, first fit decreasing", _packed("first_fit_decreasing", balance=_UNSORTED)
    ),
    "best_fit_decreasing": Method(
        "one length, best fit decreasing", _packed("best_fit_decreasing", balance=_UNSORTED)
    ),
    "spfhp": Method("one length, shortest pack first", _packed("spfhp", balance=_UNSORTED)),
    "isf": Method(
        "one length, iterative sampling and filtering", _packed("isf", balance=_UNSORTED)
    ),
    "isf_sorted": Method("the same, sorted by attention work", _packed("isf")),
    "isf_sorted_windows": Method(
        f"the same, sorted in windows of {_WINDOW_STEPS} steps",
        _packed("isf", balance=Balance(window=_WINDOW_STEPS)),
    ),
    "best_fit_sorted": Method(
        "one length, best fit decreasing, sorted", _packed("best_fit_decreasing")
    ),
    "hbp_unsorted": Method(
        "hierarchy of lengths, isf, not sorted",
        _packed("isf", hierarchy=True, balance=_UNSORTED, fill=1.0),
    ),
    "hbp_unfilled": Method(
        "hierarchy, isf, sorted, no greedy fill", _packed("isf", hierarchy=True, fill=0.0)
    ),
    "hbp_isf": Method(
        "hierarchy, isf, sorted, unbounded greedy fill", _packed("isf", hierarchy=True, fill=1.0)
    ),
    "hbp": Method(
        "hierarchy, best fit decreasing, sorted", _packed("best_fit_decreasing", hierarchy=True)
    ),
}
"""``isf`` is what speed-ups are measured against."""


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        ConfigError: if there is none, with the names there are.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown: choose among {', '.join(METHODS)}")
    return METHODS[name]
