"""Run folders are merged as they are, from where they started, and into soups by held-out loss."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixgym.envs.errors import ConfigError
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.merging import MergeError, merge_command
from mixgym.trainer.merging.files.run_folders import base_of, model_in
from mixgym.trainer.merging.held_out import HeldOutLoss

SETTINGS: dict[str, Any] = {
    "sources": {
        "addition": {"embedded": "addition", "rows": 80},
        "reversal": {"embedded": "reversal", "rows": 80},
    },
    "data": {"max_length": 64, "strata": 2},
    "model": {"name": "0.1m"},
    "run": {"tensorboard": False},
}


def fine_tuned(folder: Path, rate: float, **model: Any) -> Path:
    """A run of a few steps; runs share their rows, and so the tokenizer that is trained on them."""
    training = {"steps": 6, "interval": 3, "packs": 2, "learning_rate": rate}
    settings = {
        **SETTINGS,
        "training": training,
        "model": {**SETTINGS["model"], **model},
        "run": {**SETTINGS["run"], "dir": str(folder)},
    }
    finetune(RunConfig.model_validate(settings))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that learnt something, and one that went wild."""
    folder = tmp_path_factory.mktemp("runs")
    rates = {"quick": 0.003, "slow": 0.002, "wild": 3.0}
    return [fine_tuned(folder / name, rate) for name, rate in rates.items()]


def text(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def test_runs_stand_for_their_models(runs: list[Path], tmp_path: Path) -> None:
    one = merge_command(text(runs[:2]), method="linear", out=str(tmp_path / "a"))
    models = [str(run / "model") for run in runs[:2]]
    assert one.models == models
    merge_command(models, method="linear", out=str(tmp_path / "b"))
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_the_start_of_runs_is_their_base(runs: list[Path], tmp_path: Path) -> None:
    report = merge_command(
        text(runs[:2]), base="start", out=str(tmp_path / "out"), options={"resample": "all"}
    )
    assert report.base == str(runs[0] / "base")
    assert report.zero_share is not None
    assert max(report.zero_share) < 0.5
    from safetensors.torch import load_file

    from mixgym.envs.learners.models.small_models import PRESETS, build_model

    made = build_model(PRESETS["0.1m"], seed=0, max_positions=64).state_dict()
    for name, tensor in load_file(runs[0] / "base" / "model.safetensors").items():
        assert tensor.equal(made[name])


def test_starts_must_agree(runs: list[Path], tmp_path: Path) -> None:
    other = fine_tuned(tmp_path / "other", 0.003, init_seed=7)
    with pytest.raises(MergeError, match=r"init_seed 0 and .*other with .*init_seed 7"):
        base_of("start", [str(runs[0]), str(other)])
    with pytest.raises(MergeError, match="is not a run folder; name the base's own"):
        base_of("start", [str(runs[0]), str(runs[1] / "model")])
    with pytest.raises(MergeError, match="name the run folders"):
        base_of("start", [])
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.yaml").write_text("model: {name: some/hub-model}")
    with pytest.raises(MergeError, match="not a folder here; download it"):
        base_of("start", [str(tmp_path / "hub")])
    trained = {"name": str(runs[0] / "model")}
    assert (
        base_of("start", [str(fine_tuned(tmp_path / "second", 0.003, **trained))])
        == trained["name"]
    )


def test_unfinished_runs_and_studies_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    with pytest.raises(MergeError, match=r"left no model; finish it with `mixgym finetune .*run"):
        model_in(str(run))
    (run / "run-0").mkdir()
    with pytest.raises(MergeError, match="is a study of orders; give the runs in it"):
        model_in(str(run))
    assert model_in(str(tmp_path)) == str(tmp_path)


def soup(*words: str) -> Any:
    result = CliRunner().invoke(app, ["soup", *words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_greedy_soup_leaves_out_what_harms(runs: list[Path], tmp_path: Path) -> None:
    found = soup(*text(runs), "--out", str(tmp_path / "soup"))
    models = [str(run / "model") for run in runs]
    assert list(found["losses"]) == models
    assert max(found["losses"], key=found["losses"].__getitem__) == models[2]
    assert models[2] not in found["chosen"]
    best = min(found["losses"].values())
    chosen = [min(found["losses"], key=found["losses"].__getitem__)]
    for model, loss, kept in found["trials"]:
        assert kept == (loss <= best)
        if kept:
            chosen, best = [*chosen, model], loss
    assert (found["chosen"], found["loss"]) == (chosen, best)
    config = RunConfig.model_validate({**SETTINGS, "run": {"dir": "unused"}})
    again = HeldOutLoss(config, models[0])
    assert again(found["out"]) == pytest.approx(found["loss"], rel=1e-6)
    assert again(models[1]) == pytest.approx(found["losses"][models[1]], rel=1e-6)


def test_a_uniform_soup_takes_all(runs: list[Path], tmp_path: Path) -> None:
    found = soup(
        *text(runs[:2]), "--kind", "uniform", "--split", "reward", "--out", f"{tmp_path}/o"
    )
    assert found["chosen"] == [str(run / "model") for run in runs[:2]]
    assert found["split"] == "reward"
    assert len(found["losses"]) == 2
    shown = CliRunner().invoke(
        app, ["soup", *text(runs[:2]), "--kind", "uniform", "--out", f"{tmp_path}/p"]
    )
    assert "uniform soup (linear), NLL on the select split" in shown.stdout


def test_the_loss_of_a_run_is_what_its_records_say(runs: list[Path]) -> None:
    last = json.loads((runs[0] / "decisions.jsonl").read_text().splitlines()[-1])
    config = RunConfig.model_validate({**SETTINGS, "run": {"dir": "unused"}})
    reward = HeldOutLoss(config, str(runs[0] / "model"), "reward")
    assert reward(str(runs[0] / "model")) == pytest.approx(last["loss"]["reward_mean"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["A"], 2, "at least 2 model folders, 1 given"),
        (["A", "B"], 2, "no output folder; give one with --out"),
        (["A", "B", "--method", "liner", "--out", "O"], 2, "did you mean linear"),
        (["A", "B", "--kind", "thick"], 2, "--kind thick: choose greedy or uniform"),
        (["A", "B", "--split", "test", "--out", "O"], 2, "never on test"),
        (["A", "B", "data.max_length=few", "--out", "O"], 2, "data.max_length"),
    ],
)
def test_soups_that_will_not_do(
    words: list[str], code: int, message: str, runs: list[Path]
) -> None:
    known = {"A": str(runs[0]), "B": str(runs[1]), "O": str(runs[0].parent / "never")}
    result = CliRunner().invoke(app, ["soup", *(known.get(word, word) for word in words)])
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert not (runs[0].parent / "never").exists()


def test_models_without_rows_need_a_configuration(runs: list[Path], tmp_path: Path) -> None:
    models = [str(run / "model") for run in runs[:2]]
    for n, model in enumerate(models):
        (tmp_path / f"{n}").symlink_to(model)
    bare = [str(tmp_path / "0"), str(tmp_path / "1")]
    result = CliRunner().invoke(app, ["soup", *bare, "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "give a configuration file" in result.stderr
    found = soup(str(runs[0] / "config.yaml"), *bare, "--out", str(tmp_path / "o"))
    assert set(found["losses"]) == set(bare)


def test_tasks_without_rows_are_refused() -> None:
    config = RunConfig.model_validate({"environment": {"learner": "curves"}})
    with pytest.raises(ConfigError, match="it has no rows to measure"):
        HeldOutLoss(config, "anything")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["A", "B", "--method", "linear"], 2, "no output folder; give one with --out"),
        (["--out", "O"], 2, "no models; name their folders"),
        (["A", "B", "--method", "liner", "--out", "O"], 2, "did you mean linear"),
        (
            ["A", "B", "--method", "linear", "denstiy=1", "--out", "O"],
            2,
            "unknown option 'denstiy'",
        ),
        (["A", "--method", "slerp", "--out", "O"], 2, "slerp merges 2 model(s)"),
        (["A", "B", "--method", "ties", "--out", "O"], 2, "--base"),
        (["--recipe", "gone.yaml", "--out", "O"], 2, "gone.yaml: cannot be read"),
        (["A", "gone", "--method", "linear", "--out", "O"], 1, "gone"),
    ],
)
def test_misuse_of_merge_has_its_own_exit_code(
    words: list[str], code: int, message: str, runs: list[Path]
) -> None:
    known = {"A": str(runs[0]), "B": str(runs[1]), "O": str(runs[0].parent / "never")}
    result = CliRunner().invoke(app, ["merge", *(known.get(word, word) for word in words)])
    assert result.exit_code == code
    assert message in result.output
    assert not (runs[0].parent / "never").exists()
