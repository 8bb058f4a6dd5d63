"""``mixgym simulate``: packers beside each other on a stated cluster. Nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.costs.descriptions import HARDWARE, MODELS
from mixgym.envs.packing.grouping.groups import Cluster, Group, check_groups
from mixgym.envs.packing.grouping.selection import (
    candidate_degrees,
    candidate_lengths,
    select_groups,
)
from mixgym.envs.random_streams import stream
from mixgym.trainer.config import RunConfig
from mixgym.trainer.simulate.cluster import run_cluster
from mixgym.trainer.simulate.methods import METHODS, Scenario, find_method
from mixgym.trainer.simulate.mixes import MIXES
from mixgym.trainer.simulate.report import (
    Machine,
    assumptions,
    describe,
    plain_groups,
    simulate,
    simulation_tables,
)

_TOKENS_PER_DEVICE = 16_384  # in a step, unless said otherwise
_SHOWN = ("isf", "isf_sorted", "hbp")
PICTURE = "load.png"


@dataclass(frozen=True)
class SimulationOptions:
    """What to simulate.

    Attributes:
        mix: a name of :data:`mixgym.trainer.simulate.mixes.MIXES`, where no configuration is given.
        documents: drawn from the mix; its own number if None.
        longest: tokens in the longest pack; documents are cut there. None: the longest document
            rounded up to a power of two, or ``data.max_length`` of a configuration.
        model, hardware: names of :mod:`mixgym.envs.packing.costs.descriptions`.
        link: GB/s inside a node, instead of the stated one.
        step_tokens: in an optimiser step; None: 16K for each device.
        groups: ``auto``, or ``LENGTHxDEGREE,...``.
        methods: names of :data:`mixgym.trainer.simulate.methods.METHODS`; none: all.
        seeds: draws of lengths and orders.
        out: folder for pictures of the load; None draws none.
    """

    mix: str = "paper_like"
    documents: int | None = None
    longest: int | None = None
    model: str = "llama-3.1-8b"
    hardware: str = "32xh100"
    link: float | None = None
    step_tokens: int | None = None
    groups: str = "auto"
    methods: tuple[str, ...] = ()
    seeds: int = 5
    out: Path | None = None


def simulate_command(
    options: SimulationOptions, config: RunConfig | None = None, *, json_output: bool = False
) -> dict[str, Any]:
    """Simulate, and print the table unless JSON is wanted.

    Raises:
        ConfigError: for unknown names, or groups that the cluster cannot train.
    """
    report = make_report(options, config)
    if not json_output:
        from mixgym.trainer.runs.tables import show

        show(*simulation_tables(report))
    return report


def make_report(options: SimulationOptions, config: RunConfig | None = None) -> dict[str, Any]:
    """The report: methods, groups, assumptions, pictures."""
    methods = options.methods or tuple(METHODS)
    for name in methods:
        find_method(name)
    draws, title = _lengths(options, config)
    longest = options.longest or (config.data.max_length if config else _round_up(draws))
    draws = [np.minimum(lengths, longest) for lengths in draws]
    machine = _machine(options, draws[0], longest)
    return {
        "title": f"{title}, {options.model} on {options.hardware}",
        "documents": len(draws[0]),
        "tokens": int(np.mean([lengths.sum() for lengths in draws])),
        "seeds": len(draws),
        "groups": plain_groups(machine.groups),
        "methods": simulate(draws, machine, methods),
        "assumptions": assumptions(machine),
        "pictures": [str(path) for path in _pictures(options.out, draws[0], machine, methods)],
    }


def _lengths(options: SimulationOptions, config: RunConfig | None) -> tuple[list[IntArray], str]:
    """Lengths of each seed, and what they are."""
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: give at least 1")
    if config is not None:
        from mixgym.envs.build import load_corpus

        sources = load_corpus(config).sources
        lengths = np.concatenate([source.splits["train"].lengths for source in sources])
        title = f"{len(lengths):,} training rows of {len(sources)} sources"
        return [lengths] * options.seeds, title
    if options.mix not in MIXES:
        raise ConfigError(f"--mix {options.mix} is unknown: choose one of {', '.join(MIXES)}")
    mix = MIXES[options.mix]
    count = options.documents if options.documents is not None else mix.documents
    draws = [mix.draw(count, stream(seed, "simulate", "lengths")) for seed in range(options.seeds)]
    return draws, f"{count:,} documents of {options.mix} ({mix.summary})"


def _round_up(draws: Sequence[IntArray]) -> int:
    longest = max((int(lengths.max(initial=1)) for lengths in draws), default=1)
    return 1 << (longest - 1).bit_length()


def _machine(options: SimulationOptions, lengths: IntArray, longest: int) -> Machine:
    model = _named(MODELS, options.model, "--model")
    cost = CostModel(model, _named(HARDWARE, options.hardware, "--hardware"))
    if options.link is not None:
        if options.link <= 0:
            raise ConfigError(f"--link {options.link}: give GB/s above 0")
        cost = cost.with_link_rate(options.link * 1e9)
    devices = cost.hardware.devices
    cluster = Cluster(devices, options.step_tokens or devices * _TOKENS_PER_DEVICE)
    if options.groups == "auto":
        degrees = candidate_degrees(devices, model.heads)
        groups = select_groups(lengths, candidate_lengths(longest), degrees, cost, cluster).groups
    else:
        groups = _stated_groups(options.groups, cost)
    check_groups(groups, cluster)
    if groups[-1].length != longest:
        raise ConfigError(
            f"--groups {options.groups}: the longest group has {groups[-1].length} tokens and "
            f"documents up to {longest}: add a group, or cut documents with --longest"
        )
    return Machine(cost, cluster, groups)


def _named(registry: dict[str, Any], name: str, option: str) -> Any:
    if name not in registry:
        raise ConfigError(f"{option} {name} is unknown: choose one of {', '.join(registry)}")
    return registry[name]


def _stated_groups(text: str, cost: CostModel) -> tuple[Group, ...]:
    """Groups from ``LENGTHxDEGREE,...``; checkpointed layers follow from the stated memory."""
    groups = []
    for part in text.split(","):
        length, _, degree = part.strip().partition("x")
        if not length.isdigit() or not (degree or "1").isdigit() or int(degree or 1) < 1:
            raise ConfigError(f"--groups {text}: {part!r} is not LENGTHxDEGREE, as in 16384x1")
        found = Group(int(length), int(degree or 1))
        layers = cost.hardware.checkpointed(found.length // found.degree, cost.model.layers)
        if layers is None:
            raise ConfigError(
                f"--groups {text}: {describe([found])} puts {found.length // found.degree} tokens "
                "on a device, which do not fit its stated memory: raise the degree"
            )
        groups.append(Group(found.length, found.degree, layers))
    return tuple(groups)


def _pictures(
    out: Path | None, lengths: IntArray, machine: Machine, methods: Sequence[str]
) -> list[Path]:
    """The load of up to three methods, on the first seed."""
    if out is None:
        return []
    from mixgym.trainer.simulate.picture import load_figure

    shown = [name for name in _SHOWN if name in methods] or list(methods)[:3]
    scenario = Scenario(lengths, machine.groups, machine.cluster, 0)
    timelines = {}
    for name in shown:
        layout = find_method(name).layout(scenario)
        timelines[name] = run_cluster(layout, machine.cost.units(layout), machine.barrier)
    out.mkdir(parents=True, exist_ok=True)
    load_figure(timelines).savefig(out / PICTURE, dpi=120)
    return [out / PICTURE]
