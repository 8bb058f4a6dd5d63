"""A small run on generated sources, and everything of a run that must not depend on its kills."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs import storage
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import quiet_transformers

Make = Callable[..., RunConfig]


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXGYM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    quiet_transformers()


@pytest.fixture(autouse=True)
def _no_failpoint_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "on_failpoint", None)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast world of a few training and validation tasks."""
    from mixgym.envs.curves.tasks import sets

    for kind in ("", sets.WORLD):
        for name, count in (("train", 8), ("validation", 4)):
            monkeypatch.setitem(sets.TASK_SETS, kind + name, sets.TASK_SETS[kind + name][:count])


def small_settings(folder: Path) -> dict[str, Any]:
    """Five decisions of one step on two generated sources, a checkpoint after every second."""
    return {
        "sources": {
            "addition": {"embedded": "addition", "rows": 60},
            "noise": {"embedded": "noise", "rows": 60, "target": 0},
        },
        "data": {"max_length": 64, "strata": 2},
        "model": {"name": "0.1m"},
        "training": {"steps": 5, "interval": 1, "packs": 2},
        "run": {"dir": str(folder), "save_every": 2, "keep_last": 1},
    }


@pytest.fixture
def make_config(tmp_path: Path) -> Make:
    """``make_config(folder, section={...})``: the small settings, sections updated by key."""

    def make(folder: str | Path, **sections: Any) -> RunConfig:
        settings = small_settings(tmp_path / folder)
        for name, values in sections.items():
            is_update = isinstance(values, dict) and name in settings and name != "sources"
            settings[name] = {**settings[name], **values} if is_update else values
        return RunConfig.model_validate(settings)

    return make


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar series of a TensorBoard folder but ``time/*``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if "/time/" not in f"/{tag}" and accumulator.Scalars(tag)
    }


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A record without ``time``, and without the folder of the ``model``."""
    return {name: value for name, value in record.items() if name not in ("time", "model")}


@pytest.fixture
def remains() -> Callable[[Path], dict[str, Any]]:
    """What a run leaves, as values to compare: weights, decisions, curves, summary, files."""

    def of(run: Path) -> dict[str, Any]:
        lines = (run / "decisions.jsonl").read_text().splitlines()
        weights = run / "model" / "model.safetensors"
        return {
            "weights": weights.read_bytes() if weights.is_file() else b"",
            "decisions": [untimed(json.loads(line)) for line in lines],
            "curves": curves(run / "tensorboard"),
            "summary": untimed(json.loads((run / "summary.json").read_text())),
            "entries": sorted(path.name for path in run.iterdir()),
            "model": sorted(path.name for path in run.glob("model/*")),
            "checkpoints": sorted(path.name for path in run.glob("checkpoints/*")),
        }

    return of
