"""Difficulty of rows by a model: its loss, or instruction-following difficulty (IFD).

``loss`` is the mean NLL of a row's supervised tokens. ``ifd`` compares it with the NLL of the
completion alone: PPL(y | x) / PPL(y) (Superfiltering, and the text of HBO); ``ifd_loss`` is the
ratio of the two NLLs instead (HBO's released code); the two order rows differently. A high IFD
says that the prompt helps little. At most ``data.score_rows`` rows of a split are graded; every
other row takes the score of a graded one, drawn from those nearest in length, so that scores are
spread as among rows of that length. Losses are cached by the content of rows and model.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.learners.batching import in_order, lay_out_rows
from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.learners.parallel.processes import own_device
from mixgym.envs.learners.probes.probe_rows import bare_rows
from mixgym.envs.options import DataOptions, ModelOptions, WorldOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.difficulty import Scores
from mixgym.envs.sources.encoding import Encoding, encode_rows
from mixgym.envs.sources.scorers import MODEL_SCORES
from mixgym.envs.sources.source import EncodedRows

NEIGHBOURS = 8  # graded rows that a row without a grade draws from


def score_of(kind: str, given: Scores, alone: Scores | None) -> Scores:
    """A score from mean NLLs, higher for harder.

    Args:
        kind: ``loss``, ``ifd`` or ``ifd_loss``.
        given: float64[n], NLL of the completion given its prompt.
        alone: float64[n], NLL of the completion alone; not needed for ``loss``.

    >>> score_of("ifd", np.log([4.0, 1.2]), np.log([8.0, 2.2])).round(6).tolist()
    [0.5, 0.545455]
    >>> score_of("ifd_loss", np.log([4.0, 1.2]), np.log([8.0, 2.2])).round(6).tolist()
    [0.666667, 0.231238]
    """
    if kind == "loss" or alone is None:
        return given
    if kind == "ifd":
        return np.exp(given - alone)
    return given / np.maximum(alone, 1e-6)


@dataclass
class Grader:
    """The model that grades, its tokenizer and its cache; shared by the sources.

    Attributes:
        options: which model, in what precision.
        data: kind of score, template, length, cap, cache.
        tokenizer: of the model that is fine-tuned.
        own: whether the grading model has the same tokenizer.
        dry: grade by length instead and count what the model would read.
    """

    options: ModelOptions
    data: DataOptions
    tokenizer: Any
    own: bool
    dry: bool = False

    @cached_property
    def language(self) -> LanguageModel:
        """The model, loaded when it is first needed."""
        from mixgym.envs.learners.models.loading import load_model

        longest = self.data.max_length
        model = load_model(self.options, longest)
        return LanguageModel(model.eval(), self.options, own_device(), longest)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every weight of the model."""
        digest = hashlib.sha256()
        for name, tensor in self.language.module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()

    def losses(self, rows: EncodedRows) -> Scores:
        """float64[n], mean NLL of each row's supervised tokens, from the cache if it is there."""
        where = self._folder / f"{self._key(rows)}.npy"
        found = _read(where, len(rows))
        if found is None:
            found = self._measure(rows)
            _write(where, found)
        return found

    @property
    def _folder(self) -> Path:
        from mixgym.envs.learners.models.small_models import cache_folder

        own = self.data.score_cache
        return Path(own).expanduser() if own is not None else cache_folder() / "scores"

    def _key(self, rows: EncodedRows) -> str:
        digest = hashlib.sha256(f"{self.fingerprint}{self.options.precision}".encode())
        for array in (rows.tokens, rows.labels, rows.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:40]

    def _measure(self, rows: EncodedRows) -> Scores:
        """Rows of like length together, so that a failure in the middle costs little to explain."""
        order = np.argsort(rows.lengths, kind="stable")
        which = np.stack([np.zeros_like(order), np.zeros_like(order), order], axis=1)
        capacity, device = self.language.tokens_together, str(self.language.device)
        batches = [
            lay_out_rows(which[part], rows, 1, device)
            for part in in_order(rows.lengths[order], capacity)
        ]
        return self.language.row_losses(batches, len(rows))


@dataclass
class ModelScorer:
    """Grades the rows of one source by a model (a :class:`mixgym.envs.sources.difficulty.Scorer`).

    Attributes:
        grader: the model.
        source: name of the source, for the choice of rows and for errors.
        seed: of the choice of rows under the cap.
        cost: tokens that grading takes, whether they came from the cache or not.
    """

    grader: Grader
    source: str
    seed: int
    cost: int = 0
    is_stratum: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """The word in ``data.strata_by``."""
        return self.grader.data.strata_by

    def score(self, rows: Encoding) -> Scores:
        """float64[n]; see the module's docstring.

        Raises:
            SourceError: if a score is not finite, or no row has a prompt that IFD needs.
        """
        if not len(rows.rows):
            return np.zeros(0)
        chosen = self._chosen(len(rows.rows))
        encoded, kept = self._encoded(rows, chosen)
        bare = bare_rows(encoded) if self.name != "loss" else None
        self._check_prompts(encoded, bare)
        self.cost += int(encoded.lengths.sum()) + (0 if bare is None else int(bare.lengths.sum()))
        if self.grader.dry:
            return rows.lengths.astype(np.float64)
        given = self.grader.losses(encoded)
        scores = score_of(self.name, given, None if bare is None else self.grader.losses(bare))
        self._check(scores, rows, chosen[kept])
        return spread(scores, chosen[kept], rows.lengths, self._random("spread"))

    def _random(self, word: str) -> np.random.Generator:
        return stream(self.seed, f"grading: {word}", self.source)

    def _chosen(self, count: int) -> IntArray:
        """int64[m], the rows to grade, rising."""
        cap = self.grader.data.score_rows
        if cap is None or count <= cap:
            return np.arange(count)
        return np.sort(self._random("rows").permutation(count)[:cap])

    def _encoded(self, rows: Encoding, chosen: IntArray) -> tuple[EncodedRows, IntArray]:
        """The chosen rows in the model's tokens, and places in ``chosen`` of those that are there.

        With another tokenizer a row may have no token left that the model could be asked for.
        """
        if self.grader.own:
            return rows.rows.take(chosen), np.arange(len(chosen))
        raw = [rows.raw[i] for i in chosen]
        update = {"over_long": "truncate", "labels": "completions"}
        data = self.grader.data.model_copy(update=update)
        encoding = encode_rows(raw, self.grader.tokenizer, data, self.source)
        place = {id(row): i for i, row in enumerate(raw)}
        kept = np.array([place[id(row)] for row in encoding.raw], np.int64)
        if not len(kept):
            raise SourceError(f"source {self.source!r}: no row has a completion to grade")
        return encoding.rows, kept

    def _check_prompts(self, rows: EncodedRows, bare: EncodedRows | None) -> None:
        if bare is not None and (bare.lengths == rows.lengths).all():
            raise SourceError(
                f"source {self.source!r}: no row has a prompt, and data.strata_by={self.name} "
                "compares completions with and without theirs: take loss, or length"
            )

    def _check(self, scores: Scores, rows: Encoding, graded: IntArray) -> None:
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise SourceError(
                f"source {self.source!r}: {rows.raw[graded[bad[0]]].where}: the {self.name} is "
                f"{scores[bad[0]]}: is the grading model sound?"
            )


def spread(scores: Scores, graded: IntArray, lengths: IntArray, rng: np.random.Generator) -> Scores:
    """Scores for all rows from those of the graded ones.

    A row without a grade takes that of a graded one, drawn evenly from the :data:`NEIGHBOURS`
    nearest in length.

    Args:
        scores: float64[m].
        graded: int64[m], the rows that they belong to.
        lengths: int64[n].
        rng: the stream of the draws.

    Returns:
        float64[n].
    """
    whole = np.empty(len(lengths))
    whole[graded] = scores
    others = np.setdiff1d(np.arange(len(lengths)), graded)
    order = np.argsort(lengths[graded], kind="stable")
    width = min(NEIGHBOURS, len(graded))
    middle = np.searchsorted(lengths[graded][order], lengths[others])
    first = np.clip(middle - width // 2, 0, len(graded) - width)
    whole[others] = scores[order[first + rng.integers(width, size=len(others))]]
    return whole


def make_grader(options: WorldOptions, tokenizer: Any, *, dry: bool = False) -> Grader | None:
    """What grades the rows of a configuration; None where that takes no model.

    Args:
        options: the configuration.
        tokenizer: of the model that is fine-tuned.
        dry: only count what would be read.

    Raises:
        ConfigError: if the grading model would be one of random weights.
    """
    from mixgym.envs.learners.models.loading import load_tokenizer
    from mixgym.envs.learners.models.model_source import said_of
    from mixgym.envs.learners.models.small_models import PRESETS

    data = options.data
    if data.strata_by not in MODEL_SCORES:
        return None
    name = data.scorer or options.model.name
    if name in PRESETS:
        raise ConfigError(
            f"data.strata_by={data.strata_by}: the model {name} starts from random weights and "
            "cannot grade rows: give data.scorer a trained one (a folder, a hub name, smollm2)"
        )
    model = options.model.model_copy(update={"name": name})
    if data.scorer is None:
        return Grader(model, data, tokenizer, own=True, dry=dry)
    with said_of("data.scorer"):
        tokenizer = load_tokenizer(model, lambda: iter(()))
    return Grader(model, data, tokenizer, own=False, dry=dry)


def scorers(grader: Grader, names: Sequence[str], seed: int) -> dict[str, ModelScorer]:
    """A scorer for every source by name."""
    return {name: ModelScorer(grader, name, seed) for name in names}


# --- the cache --------------------------------------------------------------------------------


def _read(path: Path, count: int) -> Scores | None:
    """What was cached, or None; a broken file counts as none."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.shape == (count,) and found.dtype == np.float64
    return found if fits else None


def _write(path: Path, values: Scores) -> None:
    """Write under a temporary name, and rename: another process sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
