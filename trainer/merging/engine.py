"""Carries a plan out: tensor by tensor, chunk by chunk, into a folder that appears when whole."""

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from threading import Event, Lock, local
from typing import Any

import numpy as np

from mixgym.trainer.merging import lora_cat
from mixgym.trainer.merging.chunk import Chunk, Workspace
from mixgym.trainer.merging.errors import MergeError, MergeMisuseError, require_posix
from mixgym.trainer.merging.files import compatibility as gates
from mixgym.trainer.merging.files.output_file import Sink, at_block_boundary, collection_bytes
from mixgym.trainer.merging.files.writing import OutputFolder, parse_bytes
from mixgym.trainer.merging.merge_plan import Plan, TensorJob, build_kernel, make_plan
from mixgym.trainer.merging.methods.kernels import Kernel
from mixgym.trainer.merging.methods.numerics import Array, first_nonfinite
from mixgym.trainer.merging.methods.parameters import resample_rounds
from mixgym.trainer.merging.methods.statistics import Tally
from mixgym.trainer.merging.methods.sums import BLOCK_ELEMENTS
from mixgym.trainer.merging.recipe import Recipe
from mixgym.trainer.merging.report import MergeReport

_MERGE_FILE = "merge.json"
_TYPE_WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_LARGE_ZERO_SHARE = 0.001

ProgressCallback = Callable[[int, int], None]
"""Called with (elements done, elements in all)."""


def run(
    recipe: Recipe, *, dry_run: bool = False, progress: ProgressCallback | None = None
) -> MergeReport:
    """Merge models into a model, or adapters into an adapter; see :func:`merge`.

    Raises:
        MergeError: where :func:`merge` does, and if there is no output folder.
    """
    if not recipe.out:
        raise MergeMisuseError("no output folder; give one with --out")
    require_posix()
    if recipe.spec.family == "adapters":
        return lora_cat.merge_adapters(recipe, dry_run=dry_run)
    return merge(recipe, dry_run=dry_run, progress=progress)


def merge(
    recipe: Recipe, *, dry_run: bool = False, progress: ProgressCallback | None = None
) -> MergeReport:
    """Merge models into a new folder.

    Args:
        recipe: What to merge, how, and where to.
        dry_run: Check everything that can be checked without reading weights, write nothing.
        progress: Called after each chunk.

    Returns:
        What was done.

    Raises:
        MergeError: Naming the model, the tensor and the fix; the output folder then does not
            exist, or is as it was.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        plan = make_plan(recipe, stack)
        _refuse_input_as_output(plan, Path(recipe.out))
        output = OutputFolder(
            Path(recipe.out), plan.tensors, parse_bytes(recipe.max_shard_size), recipe.overwrite
        )
        tally = Tally()
        if dry_run:
            output.check()
        else:
            stack.enter_context(output)
            tally = _Run(plan, output, progress).all()
            _commit(plan, output, tally)
        return _report(plan, output, tally, dry_run, time.monotonic() - began)


def _refuse_input_as_output(plan: Plan, out: Path) -> None:
    target = out.expanduser().resolve()
    for model in [*plan.models, *([plan.base] if plan.base else [])]:
        for folder in {model.folder.resolve(), Path(model.label).expanduser().resolve()}:
            if folder == target or target in folder.parents or folder in target.parents:
                raise MergeError(
                    f"output {out} and model {model.label} overlap; write to a folder of its own"
                )


class _Run:
    """The state of one merge: buffers per worker, progress, and the stop signal."""

    def __init__(self, plan: Plan, output: OutputFolder, progress: ProgressCallback | None) -> None:
        self._plan = plan
        self._recipe = plan.recipe
        self._output = output
        self._progress = progress
        self._total = sum(job.info.elements for job in plan.jobs)
        self._done = 0
        self._lock = Lock()
        self._stop = Event()
        self._own = local()

    def all(self) -> Tally:
        """Merge every tensor; the first error stops the rest."""
        tally = Tally()
        if self._recipe.threads == 1:
            for job in self._plan.jobs:
                tally.add(self._one(job))
            return tally
        with ThreadPoolExecutor(self._recipe.threads) as pool:
            futures = [pool.submit(self._one, job) for job in self._plan.jobs]
            try:
                for future in futures:
                    tally.add(future.result())
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return tally

    def _one(self, job: TensorJob) -> Tally:
        if job.settings is None:
            self._copy_exact(job)
            return Tally()
        kernel = build_kernel(self._recipe, job)
        measured = Tally()
        if self._measures_apart(kernel, job):
            for chunk in self._chunks(job, kernel, check=True):
                measured.count_deltas(chunk.deltas())
        for stage in range(kernel.passes):
            for chunk in self._chunks(job, kernel, check=stage == 0):
                kernel.observe(stage, chunk)
            kernel.finish(stage)
        sink = self._sink(job, kernel)
        check = kernel.passes == 0 and kernel.checks != "output"
        for chunk in self._chunks(job, kernel, check, sink):
            raw = kernel.apply(chunk)
            if kernel.checks != "inputs":
                self._check_output(job, chunk, raw)
            self._emit(sink, chunk, raw)
        sink.flush()
        return self._tallied(kernel.tally, measured)

    def _measures_apart(self, kernel: Kernel, job: TensorJob) -> bool:
        return self._recipe.statistics and job.base is not None and not kernel.measures_deltas

    def _tallied(self, counted: Tally, measured: Tally) -> Tally:
        if measured.compared:
            counted.compared, counted.zeros = measured.compared, measured.zeros
            counted.squares = measured.squares
        return counted

    def _chunks(
        self, job: TensorJob, kernel: Kernel | None, check: bool, sink: Sink | None = None
    ) -> Iterator[Chunk]:
        step = self._step(job, kernel)
        refuse = check and not self._recipe.allow_nonfinite
        space = self._workspace()
        for start in range(0, job.info.elements, step):
            if self._stop.is_set():
                raise MergeError("stopped, because another tensor failed")
            stop = min(start + step, job.info.elements)
            landing = None if sink is None else sink.room(stop - start)
            yield Chunk(
                start, stop, job.origins, job.base, job.work, job.info.kind, space, refuse, landing
            )

    def _workspace(self) -> Workspace:
        if not hasattr(self._own, "space"):
            self._own.space = Workspace()
        space: Workspace = self._own.space
        return space

    def _copy_exact(self, job: TensorJob) -> None:
        """Copy an integer or boolean tensor, after checking that all models agree on it."""
        sink = self._sink(job, None)
        for chunk in self._chunks(job, None, False, sink):
            first = chunk.raw(0)
            for index in range(1, chunk.models):
                found = np.flatnonzero(first != chunk.raw(index))
                if found.size:
                    raise MergeError(
                        f"tensor {job.info.name} holds integers that differ between model "
                        f"{job.origins[0].checkpoint.label} and model "
                        f"{job.origins[index].checkpoint.label} at element "
                        f"{chunk.start + int(found[0])}; integers cannot be merged: leave one out"
                    )
            self._emit(sink, chunk, first)
        sink.flush()

    def _check_output(self, job: TensorJob, chunk: Chunk, raw: Array) -> None:
        found = None if self._recipe.allow_nonfinite else first_nonfinite(raw, job.info.kind)
        if found is not None:
            chunk.refuse_nonfinite()
            raise MergeError(
                f"tensor {job.info.name}: the merge overflows {job.info.kind.name} at element "
                f"{chunk.start + found}; choose another --out-dtype, smaller weights, or pass "
                "--allow-nonfinite"
            )

    def _sink(self, job: TensorJob, kernel: Kernel | None) -> Sink:
        storage = job.info.kind.storage
        chunk = min(self._step(job, kernel), job.info.elements)
        size = collection_bytes(chunk * storage.itemsize)
        memory = self._workspace().take("sink", np.dtype(np.uint8), size)
        return self._output.sink(job.info.name, at_block_boundary(memory), storage)

    def _step(self, job: TensorJob, kernel: Kernel | None) -> int:
        return _chunk_elements(self._recipe.chunk_elements, job, kernel)

    def _emit(self, sink: Sink, chunk: Chunk, raw: Array) -> None:
        place = chunk.place()
        if raw is not place:
            place[...] = raw.view(place.dtype)
        sink.advance(raw.size)
        if self._progress is not None:
            with self._lock:
                self._done += raw.size
                self._progress(self._done, self._total)


def _chunk_elements(wanted: int, job: TensorJob, kernel: Kernel | None) -> int:
    """Return a multiple of the block length, or of the row length where rows must be whole."""
    unit = BLOCK_ELEMENTS
    if kernel is not None:
        wanted *= kernel.stretch
        if kernel.whole_rows and job.settings is not None:
            unit = max(1, job.settings.row)
    return max(1, wanted // unit) * unit


def _commit(plan: Plan, output: OutputFolder, tally: Tally) -> None:
    copies = gates.files_to_copy(plan.donor.folder, plan.tokenizer)
    texts = {
        "config.json": json.dumps(_config(plan), indent=2) + "\n",
        _MERGE_FILE: json.dumps(_record(plan, tally), indent=2) + "\n",
    }
    output.commit(copies, texts)


def _config(plan: Plan) -> dict[str, Any]:
    config = dict(plan.donor.config)
    kinds = {job.info.kind.name for job in plan.jobs if job.settings is not None}
    if len(kinds) == 1:
        word = _TYPE_WORDS[kinds.pop()]
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config.update(dict.fromkeys(keys, word))
    return config


def _record(plan: Plan, tally: Tally) -> dict[str, Any]:
    recipe = plan.recipe.model_dump(mode="json", exclude={"threads", "chunk_elements", "out"})
    inputs = [*plan.models, *([plan.base] if plan.base else [])]
    return {
        "recipe": recipe,
        "versions": {
            "mixgym": version("mixgym"),
            "numpy": np.__version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "inputs": [{"model": m.label, "header_sha256": m.fingerprint()} for m in inputs],
        **tally.summary(),
        "warnings": [*plan.warnings, *_remarks(plan, tally)],
    }


def _remarks(plan: Plan, tally: Tally) -> list[str]:
    """Say so if resampling had nothing to do, as with checkpoints saved in float32."""
    shares = tally.summary()["zero_share"]
    resamples = plan.recipe.stages[1] == "select" and resample_rounds(plan.recipe) != 0
    if resamples and shares is not None and max(shares) < _LARGE_ZERO_SHARE:
        return [
            f"at most {max(shares):.2e} of a model's elements equal the base, so that resampling "
            "changed next to nothing; float32 checkpoints rarely hold exact zeros"
        ]
    return []


def _report(
    plan: Plan, output: OutputFolder, tally: Tally, dry_run: bool, seconds: float
) -> MergeReport:
    return MergeReport(
        out=str(output.target),
        method=plan.recipe.method,
        models=[model.label for model in plan.models],
        base=plan.base.label if plan.base else None,
        is_dry_run=dry_run,
        tensors=len(plan.jobs),
        parameters=sum(job.info.elements for job in plan.jobs),
        bytes_written=output.total_bytes,
        dtypes=dict(Counter(job.info.kind.name for job in plan.jobs)),
        files=output.files,
        seconds=seconds,
        warnings=[*plan.warnings, *_remarks(plan, tally)],
        **tally.summary(),
    )
