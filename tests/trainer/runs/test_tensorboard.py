"""What is written is read back with TensorBoard's own reader, also after a kill and a resume."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.trainer.runs.tensorboard import TAGS, TOKENS, RunWriter, layout_of, scalars_of

Curves = dict[str, list[tuple[int, float]]]


def reader(path: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def curves(path: Path) -> Curves:
    accumulator = reader(path)
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if accumulator.Scalars(tag)  # a purged tag keeps its name
    }


def record(decision: int) -> dict[str, Any]:
    return {
        "decision": decision,
        "steps": 10 * decision,
        "supervised_tokens": 1000 * decision,
        "mixture": {"maths": 0.75, "a-b": 0.25},
        "strata": {"maths": [0.5, 0.5], "a-b": [1.0]},
        "share": {"maths": 0.7, "a-b": 0.3},
        "loss": {
            "train": {"maths": 2.0 / decision, "a-b": 1.0},
            "reward": {"maths": 3.0, "a-b": None},
            "train_mean": 1.5,
            "reward_mean": 2.5,
        },
        "error": {"maths": 0.02, "a-b": 0.5},
        "reward": {"global": 0.1, "local": {"maths": 0.2}, "components": {"fall": 0.3}},
        "probes": {"norm": {"maths": 2.0, "a-b": 1.0}, "ratio": {"maths": [0.5, 0.75]}},
        "actor": {"reward_sources": {"maths": 1.5}, "change_strata": {"maths": [0.1, None]}},
        "epochs": {"maths": 0.5, "a-b": 2.0},
        "optimizer": {"learning_rate": 1e-3},
        "packing": {"fill": 0.9},
        "bilevel": {"alpha": 1.0, "weight/maths": 0.6},
        "cost": {"tokens": 12.0},
        "time": {"seconds": 1.0},
        "observation": [0.0],
        "action": [1.0],
    }


def write(path: Path, decisions: range, known: int | None = None) -> RunWriter:
    """Write decisions; a resumed run knows the first ``known`` from its records."""
    records = None if known is None else [record(n) for n in range(1, known + 1)]
    writer = RunWriter(path, records)
    for decision in decisions:
        data = json.loads(json.dumps(record(decision)))
        writer.write(decision, data["supervised_tokens"], scalars_of(data))
    return writer


def test_every_tag_is_in_the_glossary_and_the_other_way_round() -> None:
    tags = set(scalars_of(record(1)))
    used = set()
    for pattern in TAGS:
        if pattern.startswith(TOKENS):
            continue
        expression = re.sub(r"<\w+>", "[^/]+", pattern)
        matching = {tag for tag in tags if re.fullmatch(expression, tag)}
        assert matching, pattern
        used |= matching
    assert used == tags


def test_values_stand_under_their_tags() -> None:
    scalars = scalars_of(record(2))
    assert scalars["mixture/maths"] == 0.75
    assert scalars["strata/maths/1"] == 0.5
    assert scalars["probe/ratio/maths/1"] == 0.75
    assert scalars["actor/reward_sources/maths"] == 1.5
    assert "actor/change_strata/maths/1" not in scalars
    assert scalars["loss/train/maths"] == 1.0
    assert scalars["error/a-b"] == 0.5
    assert scalars["loss/reward_mean"] == 2.5
    assert scalars["reward/local/maths"] == 0.2
    assert scalars["progress/supervised_tokens"] == 2000.0
    assert math.isnan(scalars["loss/reward/a-b"])
    assert scalars_of({"decision": 0, "loss": None}) == {}


def test_losses_are_drawn_against_tokens_too(tmp_path: Path) -> None:
    writer = write(tmp_path, range(1, 4))
    writer.close()
    found = curves(tmp_path)
    points = [(n, pytest.approx(2.0 / n, rel=1e-6)) for n in (1, 2, 3)]
    assert found["loss/train/maths"] == points
    assert found[f"{TOKENS}loss/train/maths"] == [(1000 * n, value) for n, value in points]
    assert f"{TOKENS}time/seconds" not in found, "only what runs are compared by"
    assert max(found) == "tokens/loss/train/maths", "the second axis comes last"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "and is no run"
    assert "loss/reward/a-b" not in found
    assert writer.skipped == {"loss/reward/a-b": 3}


def test_what_is_constant_is_no_chart_but_is_told(tmp_path: Path) -> None:
    writer = write(tmp_path, range(1, 6))
    late = {"packing/fill": 0.8}
    writer.write(6, 6000, late)
    writer.close()
    found = curves(tmp_path)
    assert "mixture/maths" not in found
    assert all(len({value for _, value in points}) > 1 for points in found.values())
    assert found["packing/fill"] == [
        *((n, pytest.approx(0.9)) for n in range(1, 6)), (6, pytest.approx(0.8)),
    ]  # fmt: skip
    text = reader(tmp_path).Tensors("constants/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| mixture/maths | 0.75 |" in text


def test_a_run_of_one_decision_has_its_points(tmp_path: Path) -> None:
    write(tmp_path, range(1, 2)).close()
    assert curves(tmp_path)["mixture/maths"] == [(1, 0.75)]


def test_a_resumed_run_has_the_curves_of_an_unbroken_one(tmp_path: Path) -> None:
    write(tmp_path / "whole", range(1, 11)).close()
    killed = write(tmp_path / "broken", range(1, 11))
    killed.hparams({"agent": "x"}, {"final/loss": 9.0})
    killed.close()
    for path in (tmp_path / "broken").rglob("events*"):
        with path.open("ab") as file:
            file.write(b"\x18\x00\x00\x00torn by a kill")
    write(tmp_path / "broken", range(5, 11), known=4).close()
    assert curves(tmp_path / "broken") == curves(tmp_path / "whole")


def test_records_are_on_disk_before_close(tmp_path: Path) -> None:
    writer = write(tmp_path, range(1, 3))
    assert len(curves(tmp_path)["loss/train/maths"]) == 2
    writer.close()


def test_hparams_stay_in_the_run_itself(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import PLUGIN_NAME

    writer = write(tmp_path, range(1, 3))
    writer.hparams(
        {"agent": "uniform", "seed": 3, "bf16": False, "none": None},
        {"final/reward_mean": 1.25, "final/lost": math.nan},
    )
    writer.close()
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == []
    accumulator = reader(tmp_path)
    assert len(accumulator.PluginTagToContent(PLUGIN_NAME)) == 3
    assert curves(tmp_path)["final/reward_mean"] == [(2, 1.25)]
    assert "final/lost" not in curves(tmp_path)


def test_the_layout_groups_every_source(tmp_path: Path) -> None:
    tags = list(scalars_of(record(1)))
    layout = layout_of(tags)
    assert list(layout["strata"]) == ["maths", "a-b"]
    grouped = {
        tag: title
        for group in layout.values()
        for title, (_, (expression,)) in group.items()
        for tag in tags
        if re.match(expression, tag)
    }
    assert grouped["strata/a-b/0"] == "a-b"
    assert grouped["loss/train/maths"] == "training"
    assert grouped["reward/global"] == "global"
    assert grouped["share/maths"] == "realised share"
    assert "loss/train_mean" not in grouped
    assert "strata" not in layout_of([tag for tag in tags if not tag.startswith("strata/")])
    write(tmp_path, range(1, 4)).close()
    assert "custom_scalars__config__" in reader(tmp_path).Tags()["tensors"]


def test_pictures(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.image("mixture", np.full((4, 6, 3), 200, dtype=np.uint8), 3)
    writer.close()
    (image,) = reader(tmp_path).Images("mixture")
    assert (image.step, image.height, image.width) == (3, 4, 6)
