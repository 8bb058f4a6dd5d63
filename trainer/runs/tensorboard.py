"""TensorBoard records of a run: the same tags for every agent, against two axes.

``tensorboard/`` holds the scalars against decisions; what runs are compared by stands there once
more against supervised tokens, with ``tokens/`` before the tag (two axes in one chart would squash
the shorter one). What never changes is no chart, but a line of the text ``constants``. :data:`TAGS`
lists every tag that a decision record turns into; names of tags are an interface. What is recorded
is decided elsewhere: a run's curves follow from its ``decisions.jsonl``.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.runs.varying_scalars import VaryingScalars

TOKENS = "tokens/"
_ON_TOKENS = ("loss/", "mixture/", "reward/global")
"""Tags that are also drawn against supervised tokens begin like this."""

TAGS = {
    "mixture/<source>": "weight of the source in the mixture that was asked for",
    "strata/<source>/<g>": "weight of stratum g (0 is the easiest) inside the source",
    "share/<source>": "share of the interval's supervised tokens that came from the source",
    "loss/train/<source>": "mean training loss over the interval, nats per supervised token",
    "loss/train_mean": "training loss over all sources of the interval",
    "loss/reward/<source>": "loss on the reward split, nats per supervised token",
    "loss/reward_mean": "target-weighted mean loss on the reward split",
    "reward/global": "reward of the decision",
    "reward/local/<source>": "reward of the source's own level",
    "reward/components/<name>": "a part that the reward is made of",
    "probe/<name>/<source>": "what a probe found, when it was measured",
    "probe/<name>/<source>/<g>": "likewise, in stratum g",
    "actor/<name>/<source>": "what moved an actor, and by how much (nats), when it was updated",
    "actor/<name>/<source>/<g>": "likewise, in stratum g",
    "epochs/<source>": "passes over the source's training rows so far",
    "progress/steps": "optimiser steps so far",
    "progress/supervised_tokens": "supervised tokens trained on so far",
    "optimizer/<name>": "learning rate, and gradient norm before clipping",
    "packing/<name>": "how full and how even the packs are",
    "bilevel/<name>": "bilevel weights: travel used, effective sources, gap of the lower losses",
    "bilevel/<name>/<source>": "weight, logit, gap, and share of steps without the source",
    "cost/<name>": "tokens read and passes spent so far, measuring included",
    "error/<source>": "standard error of the loss on the reward split, nats, from its rows",
    "time/<name>": "measured seconds; the only tags that differ between equal runs",
    "tokens/<tag>": "losses, mixture and reward of the decision against supervised tokens",
}
"""Every tag of :func:`scalars_of`, with its meaning."""

_KNOWN_AFTER = 3
"""Decisions after which it is known what varies: the layout is written then."""

_FLAT_SECTIONS = ("optimizer", "packing", "bilevel", "cost", "time")


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Tags and values of one decision record, by the names of :data:`TAGS`.

    Args:
        record: a row of ``decisions.jsonl``. Sections that are absent give no tags; ``null`` gives
            NaN; ``observation``, ``action`` and ``decision`` are not scalars and are left out.

    Returns:
        Values by tag, in the order of the glossary.
    """
    loss, reward = record.get("loss") or {}, record.get("reward") or {}
    pairs = [
        *_section("mixture", record.get("mixture")),
        *_strata(record.get("strata")),
        *_section("share", record.get("share")),
        *_section("loss/train", loss.get("train")),
        *_one("loss/train_mean", loss, "train_mean"),
        *_section("loss/reward", loss.get("reward")),
        *_one("loss/reward_mean", loss, "reward_mean"),
        *_section("error", record.get("error")),
        *_one("reward/global", reward, "global"),
        *_section("reward/local", reward.get("local")),
        *_section("reward/components", reward.get("components")),
        *_by_source("probe", record.get("probes")),
        *_by_source("actor", record.get("actor")),
        *_section("epochs", record.get("epochs")),
        *_one("progress/steps", record, "steps"),
        *_one("progress/supervised_tokens", record, "supervised_tokens"),
        *(pair for name in _FLAT_SECTIONS for pair in _section(name, record.get(name))),
    ]
    return dict(pairs)


def layout_of(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars layout that groups the tags of a run into shared charts.

    Args:
        tags: those that have a chart; the sources are read from them.

    Returns:
        Charts by category, as ``SummaryWriter.add_custom_scalars`` takes them. A chart names its
        lines by a regular expression.
    """
    tags = list(tags)
    sources = list(dict.fromkeys(tag.split("/")[1] for tag in tags if tag.startswith("strata/")))
    charts = {
        "mixture": {"mixture": "mixture/", "realised share": "share/", "epochs": "epochs/"},
        "loss": {"reward split": "loss/reward/", "training": "loss/train/"},
        "reward": {
            "global": "reward/global$",
            "local": "reward/local/",
            "components": "reward/components/",
        },
        "strata": {source: f"strata/{re.escape(source)}/" for source in sources},
    }
    drawn = {
        category: {
            title: ["Multiline", [_whole(start)]]
            for title, start in group.items()
            if any(re.match(_whole(start), tag) for tag in tags)
        }
        for category, group in charts.items()
    }
    return {category: group for category, group in drawn.items() if group}


class RunWriter:
    """Writes a run's scalars, pictures and hyper-parameters.

    A resumed run writes its curves anew from its records: what a killed run wrote before vanishes.

    Args:
        path: the run's ``tensorboard/`` folder, made when it is not there.
        records: of a resumed run, the rows of ``decisions.jsonl`` that it continues from; None
            for a new run.

    Attributes:
        skipped: how often each tag was left out because its value was not finite.
    """

    def __init__(
        self, path: str | Path, records: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = Path(path)
        _wait_until_newest(path)
        self.skipped: Counter[str] = Counter()
        # Any: torch leaves most of its writer untyped
        self._writer: Any = SummaryWriter(str(path), purge_step=None if records is None else 0)
        self._scalars = VaryingScalars(self._writer)
        self._last_decision = 0
        self._written = 0
        self._has_layout = False
        for record in records or ():
            self._add(record["decision"], record["supervised_tokens"], scalars_of(record))

    def write(self, decision: int, supervised_tokens: int, record: Mapping[str, float]) -> None:
        """Record the scalars of one decision, and hand them to the disk.

        Args:
            decision: number of the decision.
            supervised_tokens: trained on so far.
            record: values by tag, see :func:`scalars_of`; those that are not finite are skipped
                and counted in :attr:`skipped`.
        """
        self._add(decision, supervised_tokens, record)
        self.flush()

    def _add(self, decision: int, supervised_tokens: int, record: Mapping[str, float]) -> None:
        for tag, value in record.items():
            if not math.isfinite(value):
                self.skipped[tag] += 1
                continue
            self._scalars.add(tag, value, decision)
            if tag.startswith(_ON_TOKENS):
                self._scalars.add(f"{TOKENS}{tag}", value, supervised_tokens)
        self._last_decision = decision
        self._written += 1
        if self._written == _KNOWN_AFTER:
            self._write_layout()

    def image(self, tag: str, picture: NDArray[np.uint8], decision: int) -> None:
        """Record a picture.

        Args:
            tag: its name.
            picture: uint8[height, width, 3], such as ``render()`` gives.
            decision: where on the axis it stands.
        """
        self._writer.add_image(tag, picture, decision, dataformats="HWC")

    def hparams(
        self, values: Mapping[str, str | float | bool | None], metrics: Mapping[str, float]
    ) -> None:
        """Make the run a row of the HParams tab; call it once, at the end.

        The summaries go into the run's own event file: ``SummaryWriter.add_hparams`` would make
        another sub-run for every call.

        Args:
            values: what the run was made with; None values are left out.
            metrics: what came out, by tag; a tag that has no curve yet becomes one of a point.
        """
        from torch.utils.tensorboard import summary

        summaries_of: Any = summary.hparams  # untyped in torch
        known = {name: value for name, value in values.items() if value is not None}
        finite = {tag: value for tag, value in metrics.items() if math.isfinite(value)}
        for part in summaries_of(known, finite):
            self._writer.file_writer.add_summary(part, self._last_decision)
        for tag, value in finite.items():
            self._writer.add_scalar(tag, value, self._last_decision)
        self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system; do so before a checkpoint is saved."""
        self._writer.flush()

    def close(self) -> None:
        """Write what was held back and can be drawn, say what was constant, and close the file."""
        self._scalars.finish()
        self._write_layout()
        constants = self._scalars.constants()
        if constants:
            rows = [f"| {tag} | {value:g} |" for tag, value in sorted(constants.items())]
            self._writer.add_text("constants", "\n".join(["| tag | value |", "|---|---|", *rows]))
        self._writer.close()

    def _write_layout(self) -> None:
        """Once: TensorBoard reads the first layout of a run."""
        if not self._has_layout and self._scalars.varied:
            self._writer.add_custom_scalars(layout_of(sorted(self._scalars.varied)))
            self._has_layout = True


def _section(prefix: str, values: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    for name, value in (values or {}).items():
        yield f"{prefix}/{name}", _number(value)


def _strata(strata: Mapping[str, Sequence[Any]] | None) -> Iterator[tuple[str, float]]:
    for source, weights in (strata or {}).items():
        for stratum, weight in enumerate(weights):
            yield f"strata/{source}/{stratum}", _number(weight)


def _by_source(
    prefix: str, found_by_name: Mapping[str, Mapping[str, Any]] | None
) -> Iterator[tuple[str, float]]:
    """Name -> source -> a number, or one per stratum."""
    for name, sources in (found_by_name or {}).items():
        for source, found in sources.items():
            if not isinstance(found, Sequence):
                yield f"{prefix}/{name}/{source}", _number(found)
                continue
            for stratum, value in enumerate(found):
                if value is not None:
                    yield f"{prefix}/{name}/{source}/{stratum}", _number(value)


def _one(tag: str, values: Mapping[str, Any], key: str) -> Iterator[tuple[str, float]]:
    if key in values:
        yield tag, _number(values[key])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _whole(start: str) -> str:
    """The expression for all tags that begin with ``start``, or for exactly one (``$``)."""
    return f"^{start}" if start.endswith("$") else f"^{start}[^/]+$"


def _wait_until_newest(folder: Path) -> None:
    """Wait until a new event file will sort after those in ``folder``.

    TensorBoard reads the files of a folder in the order of their names, which begin with the second
    of their making: two of the same second could be read in the wrong order, and a purge undone.
    """
    seconds = [
        int(match[1])
        for path in folder.glob("events.out.tfevents.*")
        if (match := re.match(r"events\.out\.tfevents\.(\d+)", path.name))
    ]
    newest = max(seconds, default=0)
    deadline = time.monotonic() + 1.5  # a clock that was set back is not waited for
    while int(time.time()) <= newest and time.monotonic() < deadline:
        time.sleep(0.05)
