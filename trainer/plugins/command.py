"""``mixgym check-plugin``: finds out what a plug-in is, and runs the checks of its kind."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.plugins.outside import declared, load_object, load_word
from mixgym.envs.plugins.registry import Registry
from mixgym.trainer.plugins.checking import Check, Finding, run_checks


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in.

    Attributes:
        table: ``module:name`` of its registry.
        checks: ``module:name`` of ``(word, entry) -> checks``.
        types: names of the classes whose instances, or subclasses, are of this kind only.
    """

    table: str
    checks: str
    types: tuple[str, ...]

    def registry(self) -> Registry[Any]:
        """The table, imported now."""
        table: Registry[Any] = load_object(self.table)
        return table


KINDS = {
    "reward": Kind(
        "mixgym.envs.rewards:REWARDS", "mixgym.trainer.plugins.of_rewards:checks", ("RewardKind",)
    ),
    "probe": Kind(
        "mixgym.envs.probes:PROBES", "mixgym.trainer.plugins.of_probes:checks", ("ProbeKind",)
    ),
    "algorithm": Kind(
        "mixgym.agents.registry:ALGORITHMS",
        "mixgym.trainer.plugins.of_schedulers:checks",
        ("Algorithm", "Preset", "Rule", "BaseAlgorithm"),
    ),
    "scorer": Kind(
        "mixgym.envs.sources.scorers:SCORERS",
        "mixgym.trainer.plugins.of_data:scorer_checks",
        ("ScorerKind",),
    ),
    "row-format": Kind(
        "mixgym.envs.sources.rows.formats:FORMATS",
        "mixgym.trainer.plugins.of_data:format_checks",
        ("RowFormat",),
    ),
    "packer": Kind(
        "mixgym.envs.packing.packers:PACKERS",
        "mixgym.trainer.plugins.of_data:packer_checks",
        ("PackerKind",),
    ),
    "merge-method": Kind(
        "mixgym.trainer.merging.methods.catalogue:METHODS",
        "mixgym.trainer.plugins.of_merging:checks",
        ("MethodSpec",),
    ),
}


@dataclass(frozen=True)
class Report:
    """What was found of a plug-in.

    Attributes:
        word: of the plug-in.
        kind: what it is.
        origin: where it comes from.
        findings: of all checks.
    """

    word: str
    kind: str
    origin: str
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether it holds everything."""
        return all(finding.passed for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        found = [vars(finding) for finding in self.findings]
        own = {"plugin": self.word, "kind": self.kind, "origin": self.origin}
        return {**own, "passed": self.passed, "checks": found}

    def text(self) -> str:
        """A line for every check."""
        width = max(len(finding.check) for finding in self.findings)
        lines = [
            f"{'ok    ' if one.passed else 'FAILED'}  {one.check:<{width}}  {one.said}".rstrip()
            for one in self.findings
        ]
        failed = sum(not one.passed for one in self.findings)
        end = f"{failed} of {len(lines)} checks failed" if failed else "all checks passed"
        return "\n".join([f"{self.kind} {self.word} ({self.origin})", *lines, end])


def check_plugin(word: str, kind: str | None = None) -> Report:
    """Check a plug-in.

    Args:
        word: ``module:attribute``, or a word that a distribution declares.
        kind: of :data:`KINDS`, where the plug-in itself does not tell.

    Raises:
        ConfigError: if there is no such plug-in, it is none of its kind, or its kind is not told.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--as {kind}: no kind of plug-in; {did_you_mean(kind, KINDS)}")
    found = kind or find_kind(word)
    table = KINDS[found].registry()
    entry = table.find(word, "check-plugin")
    checks: Callable[[str, Any], Iterator[Check]] = load_object(KINDS[found].checks)
    return Report(word, found, table.origin(word), run_checks(checks(word, entry)))


def find_kind(word: str) -> str:
    """The kind that a plug-in is of, by who declares or registers it, or by its class.

    Raises:
        ConfigError: if it is not told, or two kinds have the word.
    """
    if ":" not in word:
        return _only(word, [name for name, kind in KINDS.items() if kind.registry().knows(word)])
    thing = load_word(word, f"check-plugin={word}")
    classes = thing.mro() if inspect.isclass(thing) else type(thing).mro()
    names = {base.__name__ for base in classes}
    return _only(
        word,
        [
            name
            for name, kind in KINDS.items()
            if names & {*kind.types}
            or kind.registry().holds(thing)
            or any(p.value == word for found in _points(kind) for p in found)
        ],
    )


def _points(kind: Kind) -> Any:
    return declared(kind.registry().group).values()


def _only(word: str, kinds: list[str]) -> str:
    if len(kinds) == 1:
        return kinds[0]
    told = " and ".join(kinds) if kinds else "nothing that tells its kind"
    raise ConfigError(f"check-plugin {word}: is {told}; add --as {', --as '.join(kinds or KINDS)}")
