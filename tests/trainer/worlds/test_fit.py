"""Worlds fitted to recorded runs: recovered where they are known, refused where nothing is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mixgym.envs.curves.dynamics import CurveState, nll
from mixgym.envs.curves.tasks.fitted import read_world
from mixgym.envs.errors import ConfigError, RunError
from mixgym.trainer.worlds.figures import cross_validated, figures, is_useful
from mixgym.trainer.worlds.fit import fit_command, fit_runs
from mixgym.trainer.worlds.fitting import predict
from mixgym.trainer.worlds.order import order_effects
from mixgym.trainer.worlds.parameters import Parameters
from mixgym.trainer.worlds.trajectories import mean_known, read_runs

from .synthetic import DECISIONS, NAMES, known_world, leave_run

RUNS = 16


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for number in range(RUNS):
        leave_run(folder / f"run-{number:04d}", seed=number)
    return folder


def test_runs_are_read_as_they_were_recorded(library: Path) -> None:
    recorded = read_runs([library])
    runs, corpus = recorded.runs, recorded.corpus
    assert runs.nll.shape == (RUNS, DECISIONS, 3, 2)
    assert corpus.names == NAMES
    assert corpus.cost[:, 0].tolist() == [1.5, 8.0, 2.0]
    assert not corpus.pretrained, "all losses start alike high"
    # every interval reads the same number of tokens
    read = (runs.supervised * corpus.cost).sum((-2, -1))
    assert read == pytest.approx(np.full((RUNS, DECISIONS), 1e5 / DECISIONS))
    assert runs.rate.max() > 1.0 > np.median(runs.rate[:, 0]) * 0.9
    assert read_runs([library / "run-0003", library / "run-0001"]).folders[0].name == "run-0003"


def test_a_known_world_is_recovered_on_runs_that_were_held_out(library: Path) -> None:
    recorded = read_runs([library])
    report = figures(cross_validated(recorded.runs, recorded.corpus, folds=2), NAMES)
    assert is_useful(report)
    assert report["explained"] > 0.9
    assert report["rank"] > 0.9
    assert report["error"]["world"] < 0.25 * report["error"]["mean"]
    assert report["second_half"]["world"] < 0.5 * report["second_half"]["stay"]
    assert report["explained"] > report["explained_amounts"]
    assert set(report["by_source"]) == set(NAMES)


def test_the_file_is_the_fit(library: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "worlds" / "known.json", tmp_path / "known.png"
    report = fit_runs([library], out=out, origin="hand-made", folds=2, picture=picture)
    world = read_world(out)
    assert (world.name, world.sources) == ("known", NAMES)
    assert world.about["origin"] == "hand-made"
    assert world.about["fit"]["explained"] == report["explained"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    task, truth = world.task(), known_world()
    runs = read_runs([library]).runs
    off = predict(task, runs) - runs.nll
    assert float(np.abs(off).mean()) < 0.02
    # a run begins where it was measured, 1 % beside the truth
    begun = nll(task, CurveState.start(task))
    np.testing.assert_allclose(begun, nll(truth, CurveState.start(truth)), rtol=0.04)
    # the rows were measured on 400 tokens with an error of 1 %, which stays
    np.testing.assert_allclose(world.row_error, 0.01 * np.sqrt(400.0), rtol=1e-3)
    assert world.stays > 0.9
    assert {p.name for p in tmp_path.iterdir()} == {"worlds", "known.png"}


def test_the_command_prints_its_figures_and_answers_in_json(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = fit_command([library], out=tmp_path / "w.json", folds=2)
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("green", "mean over mixtures", "law of amounts", "losses that stay", "w.json"):
        assert words in shown
    assert json.loads(json.dumps(answer))["runs"] == RUNS


def test_what_no_mixture_explains_is_refused_with_its_figures(
    library: Path, tmp_path: Path
) -> None:
    """Runs whose losses are those of other runs: nothing that was trained on tells them."""
    mixed = tmp_path / "mixed"
    shutil.copytree(library, mixed)
    files = sorted(mixed.glob("*/decisions.jsonl"))
    texts = [file.read_text().splitlines() for file in files]
    rng = np.random.default_rng(0)
    for file, lines in zip(files, texts, strict=True):
        rows = [json.loads(line) for line in lines]
        for row in rows:
            for name in NAMES:
                row["cells"]["loss"][name] = rng.uniform(1.0, 5.0, 2).tolist()
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match=r"no better than the nulls.*mean over mixtures \d"):
        fit_runs([mixed], out=tmp_path / "world.json", folds=2)
    assert not (tmp_path / "world.json").exists()


def test_derivatives_are_of_the_vector_that_is_moved(library: Path) -> None:
    recorded = read_runs([library])
    parameters = Parameters(recorded.corpus)
    moved = parameters.moved(parameters.mean, 1e-3)
    assert moved.shape == (parameters.size + 1, parameters.size)
    many = parameters.task(moved[:4])
    one = parameters.task(moved[3])
    runs = recorded.runs.pick(slice(0, 2))
    np.testing.assert_allclose(predict(many, runs)[3], predict(one, runs), rtol=1e-12)


def test_losses_start_where_they_were_measured_whatever_the_vector(library: Path) -> None:
    recorded = read_runs([library])
    parameters = Parameters(recorded.corpus)
    rng = np.random.default_rng(1)
    for _ in range(5):
        task = parameters.task(
            parameters.mean + parameters.deviation * rng.normal(size=parameters.size)
        )
        np.testing.assert_allclose(
            nll(task, CurveState.start(task)), recorded.corpus.start, rtol=1e-9
        )


def test_the_worth_of_order_is_read_from_designed_pairs(library: Path, tmp_path: Path) -> None:
    pair = tmp_path / "pairs"
    for number, name in enumerate(("run-0000", "run-0001")):
        shutil.copytree(library / f"run-{number:04d}", pair / name)
    rows = [
        {"name": "run-0000", "kind": "first order", "draw": 7},
        {"name": "run-0001", "kind": "second order", "draw": 7},
    ]
    (pair / "record.json").write_text(json.dumps({"runs": rows}))
    recorded = read_runs([pair])
    found = order_effects(recorded, known_world())
    end = mean_known(recorded.runs.nll[:, -1], axis=-1)
    assert found["pairs"] == 1
    assert found["seen"] == pytest.approx(np.abs(end[0] - end[1]).mean())
    assert found["predicted"] > 0
    assert order_effects(read_runs([library]), known_world())["pairs"] == 0


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("nothing", "no run with decisions.jsonl there"),
        ("old", "lacks what a fit needs"),
        ("torn", "lacks what a fit needs"),
        ("others", "fit them apart"),
        ("few", "3 runs: a fit needs at least 8"),
    ],
)
def test_runs_that_cannot_be_used_are_named(
    library: Path, tmp_path: Path, harm: str, message: str
) -> None:
    own = tmp_path / "runs"
    for number in range(3):
        shutil.copytree(library / f"run-{number:04d}", own / f"run-{number:04d}")
    world, decisions = own / "run-0001" / "world.json", own / "run-0001" / "decisions.jsonl"
    if harm == "nothing":
        own = tmp_path
    if harm == "old":
        row = json.loads(decisions.read_text().splitlines()[0])
        del row["cells"]
        decisions.write_text(json.dumps(row) + "\n")
    if harm == "torn":
        world.write_text(world.read_text()[:-20])
    if harm == "others":
        world.write_text(world.read_text().replace("green", "gold"))
        decisions.write_text(decisions.read_text().replace("green", "gold"))
    with pytest.raises(ConfigError, match=message):
        fit_runs([own], out=tmp_path / "world.json")
