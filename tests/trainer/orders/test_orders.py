"""The study of orders: models differ by order alone, nothing is done twice, mistakes are named."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, MixgymError, RunError
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, dump_config
from mixgym.trainer.orders import runs as runs_module
from mixgym.trainer.orders.command import orders_command
from mixgym.trainer.orders.runs import checkpoint, marks, train_run
from mixgym.trainer.orders.shared_setup import Setting, StudySetup
from mixgym.trainer.orders.study import study

from ..conftest import Make, small_settings

SMALL: dict[str, dict[str, Any]] = {
    "training": {"learning_rate": 0.003},
    "orders": {"runs": 2, "rows": 30, "batch": 5, "checkpoints": 1, "bins": 3},
}


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config("study", **SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A study that ran through, to be read by several tests."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    settings = small_settings(folder)
    own = {name: {**settings.get(name, {}), **values} for name, values in SMALL.items()}
    config = RunConfig.model_validate({**settings, **own})
    study(config)
    return config


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def leavings(folder: Path) -> dict[str, bytes]:
    """Every file but the configuration, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("config.yaml", "merge.json")
    }


def test_a_study_from_end_to_end(make_config: Make) -> None:
    controls = ["constant-rate", "other-kind"]
    config = make_config("whole", **{**SMALL, "orders": {**SMALL["orders"], "controls": controls}})
    folder = Path(config.run.dir)
    summary = study(config)
    assert json.loads((folder / "summary.json").read_text()) == storage.plain(summary)
    check_csv(folder)
    check_models(folder, summary)
    names = [(row["name"], row["precision"]) for row in summary["models"]]
    merges = ["mean of the runs", "linear", "select", "select, resampled"]
    assert names == [
        *(("base", "float32"), ("run 0", "float32"), ("run 1", "float32")),
        *((name, "float32") for name in merges),
        *((name, "bfloat16") for name in merges),
    ]
    effects = json.loads((folder / "analysis.json").read_text())
    assert list(effects) == ["first epoch", "last epoch", "held-out", "constant-rate", "positions"]
    assert all(len(effect["effect"]) == 3 for effect in effects.values())
    for picture in ("position_loss.png", "validation.png", "anchor.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    text: Any = AutoModelForCausalLM.from_pretrained(folder / "merged" / "select" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged" / "select" / "model")
    ids = tokenizer("3+4", return_tensors="pt", return_token_type_ids=False)
    assert text.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids.input_ids.shape[1]


def check_csv(folder: Path) -> None:
    with (folder / "position_loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "sample", "position", "final_loss"]
    assert len(rows) == 2 * 30
    for run in ("0", "1"):
        mine = [row for row in rows if row["run"] == run]
        assert len({row["sample"] for row in mine}) == 30
        places = sorted(float(row["position"]) for row in mine)
        np.testing.assert_allclose(places, np.arange(30) / 30, atol=1e-6)
    kept = json.loads((folder / "run-1" / "summary.json").read_text())["losses"]
    np.testing.assert_allclose([float(r["final_loss"]) for r in rows[30:]], kept, atol=1e-6)


def check_models(folder: Path, summary: dict[str, Any]) -> None:
    by_name = {(row["name"], row["precision"]): row for row in summary["models"]}
    singles = [by_name[f"run {k}", "float32"]["test"] for k in range(2)]
    assert singles[0] != singles[1], "another order, another model"
    mean = by_name["mean of the runs", "float32"]
    assert mean["test"] == pytest.approx(sum(singles) / 2)
    for name in ("linear", "select"):
        single = by_name[name, "float32"]
        assert np.isfinite(single["test"])
        assert single["test"] not in singles
    zeros = {p: by_name["select, resampled", p]["zero_share"] for p in ("float32", "bfloat16")}
    assert zeros["bfloat16"] > zeros["float32"]


def test_runs_differ_by_order_alone(config: RunConfig, tmp_path: Path) -> None:
    setup = StudySetup(config)
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    train_run(setup, Setting("", "samples"), 0, first)
    train_run(setup, Setting("", "samples"), 0, again)
    train_run(setup, Setting("", "samples"), 1, other)
    assert weights(first) == weights(again)
    assert weights(first) != weights(other)
    constant = tmp_path / "constant"
    record = train_run(setup, Setting("c", "samples", constant=True), 0, constant)
    assert weights(constant) != weights(first), "the learning rate differs"
    assert [step for step, _ in record.validation] == marks(setup.steps, 1) == [6, 12]


def test_row_losses_are_those_of_each_row_alone(config: RunConfig) -> None:
    """Packed and by row, against one unpacked forward pass per row with the library's own loss."""
    import torch

    setup = StudySetup(config)
    learner = setup.learner(Setting("", "samples"))
    losses = setup.training_losses(learner)
    held_out = setup.held_out_losses(learner)
    assert held_out.shape == (len(setup.held_out),)
    learner.model.set_attn_implementation("eager")
    learner.model.eval()
    for i in (0, 7, 29):
        k, _, row = setup.rows.where[i]
        tokens, labels = setup.sources[k].splits["train"].row(int(row))
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        targets = torch.where(torch.from_numpy(labels)[None], ids, -100)
        with torch.no_grad():
            expected = learner.model(input_ids=ids, labels=targets).loss
        assert losses[i] == pytest.approx(float(expected), rel=1e-5)


# --- killed and gone on with ----------------------------------------------------------------------


class KilledError(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("at", [3, 14, 40, 60])
def test_a_killed_study_goes_on_to_the_same_end(
    at: int, finished: RunConfig, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = make_config("killed", **SMALL)
    reached = iter(range(1, 10_000))

    def fail(name: str) -> None:
        if next(reached) == at:
            raise KilledError(name)

    monkeypatch.setattr(storage, "on_failpoint", fail)
    with pytest.raises(KilledError):
        study(killed)
    monkeypatch.setattr(storage, "on_failpoint", None)
    study(killed)
    one, other = leavings(Path(finished.run.dir)), leavings(Path(killed.run.dir))
    for files in (one, other):
        files.pop("summary.json")  # names its folder
    assert list(one) == list(other)
    different = [name for name in one if one[name] != other[name]]
    assert not different


def test_finished_runs_are_not_repeated(
    finished: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leavings(Path(finished.run.dir))
    monkeypatch.setattr(runs_module, "_train", lambda *_: pytest.fail("trained again"))
    study(finished)
    assert leavings(Path(finished.run.dir)) == before


def test_more_runs_join_a_finished_study(finished: RunConfig, config: RunConfig) -> None:
    folder = Path(config.run.dir)
    shutil.copytree(finished.run.dir, folder)
    first = weights(folder / "run-0")
    two = weights(folder / "merged" / "linear")
    orders = config.orders.model_copy(update={"runs": 3})
    summary = study(config.model_copy(update={"orders": orders}))
    assert weights(folder / "run-0") == first
    assert weights(folder / "merged" / "linear") != two, "merged anew, of three"
    assert [r["name"] for r in summary["models"]][1:4] == ["run 0", "run 1", "run 2"]


def test_a_run_goes_on_from_its_checkpoint(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = StudySetup(config)
    setting = Setting("", "positions")
    train_run(setup, setting, 0, tmp_path / "whole")
    half = tmp_path / "half"
    trained = []
    original = CausalLM.train

    def stop_after_the_first(self: Any, plan: Any, *rest: Any) -> Any:
        trained.append(len(plan.steps))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(self, plan, *rest)

    monkeypatch.setattr(CausalLM, "train", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        train_run(setup, setting, 0, half)
    assert (checkpoint(half, 6, 12) / "optimizer.pt").is_file()
    train_run(setup, setting, 0, half)
    assert trained == [6, 6, 6], "the first half is not trained twice"
    assert weights(half) == weights(tmp_path / "whole")
    assert not list(half.rglob("optimizer.pt")), "only a run that is under way needs it"


# --- mistakes -------------------------------------------------------------------------------------


def test_another_configuration_is_refused(config: RunConfig, make_config: Make) -> None:
    folder = Path(config.run.dir)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    changed = make_config("study", **{**SMALL, "training": {"learning_rate": 0.1}})
    with pytest.raises(ConfigError, match=r"another training\.learning_rate"):
        study(changed)
    with pytest.raises(ConfigError, match="another seed"):
        study(config.model_copy(update={"seed": 5}))


def test_other_rows_are_refused(make_config: Make, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"{i}+1", "answer": str(i + 1)}) for i in range(80)]
    file.write_text("\n".join(lines))
    config = make_config("study", **SMALL, sources={"sums": {"path": str(file)}})
    folder = Path(config.run.dir)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "rows.json").write_text(json.dumps({"fingerprint": "other"}))
    with pytest.raises(ConfigError, match="other rows than when the study was started"):
        study(config)


def test_a_folder_with_something_else_is_refused(config: RunConfig) -> None:
    folder = Path(config.run.dir)
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty and no study"):
        study(config)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"runs": 1}, "--runs 1: an order shows beside another one"),
        ({"kind": "rows"}, "--kind rows: choose samples or positions"),
    ],
)
def test_options_that_will_not_do(arguments: dict[str, Any], words: str, config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=words):
        orders_command(config, **arguments)
    assert not Path(config.run.dir).exists()


def test_curves_have_no_rows(make_config: Make) -> None:
    config = make_config("study", sources="embedded", environment={"learner": "curves"})
    with pytest.raises(ConfigError, match="it has no rows to order"):
        study(config)


def test_a_diverging_run_is_named(make_config: Make) -> None:
    training = {"learning_rate": 1e30, "clip": None, "warmup": 0}
    config = make_config("study", **{**SMALL, "training": training})
    with pytest.raises(MixgymError, match=r"run-0: .*lower training\.learning_rate"):
        study(config)


def test_the_command(finished: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(finished.run.dir, tmp_path / "out")
    file = tmp_path / "study.yaml"
    file.write_text(dump_config(finished))
    words = ["orders", str(file), "--runs", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--kind", "samples", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["kind"], answer["runs"]) == ("samples", 2)
    assert [Path(path).is_dir() for path in answer["run_models"]] == [True, True]
    shown = CliRunner().invoke(app, words)
    assert "select, resampled (bf16)" in shown.stdout
    assert "first epoch" in shown.stdout
    other = CliRunner().invoke(app, [*words, "--kind", "positions"])
    assert other.exit_code == 2
    assert "another orders.kind" in other.stderr
    wrong = CliRunner().invoke(app, ["orders", str(file), "orders.rounds=3"])
    assert wrong.exit_code == 2
