"""A source as the rest of the world sees it: encoded rows, their splits and their strata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixgym.envs.arrays import IntArray
from mixgym.envs.sources.encoded.token_rows import EncodedRows as EncodedRows  # where it was before


@dataclass(frozen=True)
class SourceReport:
    """What was read and what was done to it; every policy that acted has a count here.

    ``counts`` maps a plain name (``rows read``, ``rows truncated``, ``rows skipped: over-long``,
    ``rows skipped: no supervised token``, ``lines skipped: malformed``,
    ``duplicates: train in test`` ...) to a number; zero counts are left out. ``warnings`` are
    sentences on what stands in the rows and does not reach the model.
    """

    origin: str
    row_format: str
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One source, ready to be sampled and evaluated.

    Attributes:
        name: its name in the configuration.
        target: weight in rewards and evaluation.
        splits: ``train``, ``reward``, ``select``, ``test``; any may be empty.
        strata: for each split int64[rows], the stratum of each row, 0 the easiest.
        n_strata: G, the same for every source of a mixture.
        max_epochs: cap on passes over a stratum's rows, or None.
        report: what reading it did.
    """

    name: str
    target: float
    splits: Mapping[str, EncodedRows]
    strata: Mapping[str, IntArray]
    n_strata: int
    max_epochs: float | None
    report: SourceReport


def warnings_of(sources: Sequence[Source], least_rows: int) -> list[str]:
    """What a user should know of the sources before anything is trained on them.

    Args:
        sources: of a mixture.
        least_rows: ``data.held_out_rows``; targets with fewer are named.
    """
    found = [f"{source.name}: {line}" for source in sources for line in source.report.warnings]
    few = [
        f"{source.name} ({', '.join(parts)})"
        for source in sources
        if source.target > 0
        and (
            parts := [
                f"{split} {len(source.splits[split])}"
                for split in ("reward", "select", "test")
                if len(source.splits[split]) < least_rows
            ]
        )
    ]
    if few:
        found.append(
            f"fewer held-out rows than data.held_out_rows = {least_rows}, so that losses on them "
            f"are noisy: {', '.join(few)}; give the sources more rows, held-out files, or a "
            "larger data.held_out_fraction"
        )
    return found
