"""What is written is what was drawn, the same each time, and nothing held out is trained on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixgym.envs.learners.corpus import load_corpus
from mixgym.envs.sources.files import find_files
from mixgym.envs.sources.reading import read_rows
from mixgym.envs.sources.rows.row import Row
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.tasks.materialise import CONFIG, TASK, materialise, on_task, task_rows
from mixgym.trainer.tasks.pool import ROLES, Pool, find_pool
from mixgym.trainer.tasks.real_tasks import Change, RealTask, draw_task, real_tasks

from .conftest import fill, write


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(config: RunConfig) -> dict[str, dict[str, tuple[Row, ...]]]:
    assert isinstance(config.sources, dict)
    return {
        name: dict(read_rows(find_files(source, name).roles, name).rows)
        for name, source in config.sources.items()
    }


def with_change(pool: Pool, change: Change) -> RealTask:
    tasks = (draw_task(pool, seed) for seed in range(100))
    return next(t for t in tasks if any(s.change == change for s in t.sources))


def test_the_same_bytes_each_time_and_only_once(pool: Pool, tmp_path: Path) -> None:
    task = draw_task(pool, 3)
    home = materialise(task, pool, tmp_path / "tasks")
    first, times = files(home), {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    assert materialise(task, pool, tmp_path / "tasks") == home
    assert times == {p: p.stat().st_mtime_ns for p in home.rglob("*")}, "nothing is written again"
    other = files(materialise(task, pool, tmp_path / "others"))
    first.pop(CONFIG), other.pop(CONFIG)  # they name their folders
    assert first == other
    larger = load_config(materialise(task, pool, tmp_path / "tasks", model="1m") / CONFIG)
    assert larger.model.name == "1m"
    assert larger.data.max_length == 256


def test_another_pool_or_a_torn_folder_is_written_again(tmp_path: Path) -> None:
    root = fill(tmp_path / "pool")
    task = draw_task(find_pool(root), 3)
    home = materialise(task, find_pool(root), tmp_path)
    before = (home / TASK).read_bytes()
    os.utime(root / "talk" / "train.jsonl", ns=(1, 1))
    materialise(task, find_pool(root), tmp_path)
    assert (home / TASK).read_bytes() != before
    (home / TASK).unlink()
    materialise(task, find_pool(root), tmp_path)
    assert (home / TASK).is_file()


def test_a_task_is_what_its_configuration_reads(pool: Pool, tmp_path: Path) -> None:
    task = draw_task(pool, 1)
    config = load_config(materialise(task, pool, tmp_path) / CONFIG)
    assert isinstance(config.sources, dict)
    assert {n: s.target for n, s in config.sources.items()} == {
        s.name: s.target for s in task.sources
    }
    for name, splits in task_rows(task, pool).items():
        read = rows_of(config)[name]
        for role in ROLES:
            assert [row.content for row in read[role]] == [row.content for row in splits[role]]
    training = config.training
    assert (training.steps, training.interval) == (task.steps, task.interval)
    assert (training.packs, training.learning_rate) == (4, task.learning_rate)
    assert config.data.held_out_tokens == task.held_out_tokens
    corpus = load_corpus(config)
    assert [source.name for source in corpus.sources] == [s.name for s in task.sources]
    assert all(len(s.splits[r]) > 0 for s in corpus.sources for r in s.splits)


def test_what_a_configuration_gives_counts_but_its_sources(pool: Pool, tmp_path: Path) -> None:
    task = draw_task(pool, 1)
    home = materialise(task, pool, tmp_path)
    mine = on_task(load_config(None), task, home)
    assert mine.model_copy(update={"run": None}) == load_config(home / CONFIG).model_copy(
        update={"run": None}
    )
    given = ["model.name=1m", "training.packs=2", "seed=5", "sources={a: {embedded: addition}}"]
    other = on_task(load_config(None, given), task, home)
    assert (other.model.name, other.training.packs, other.seed) == ("1m", 2, 5)
    assert other.sources == mine.sources
    assert (other.training.steps, other.data) == (task.steps, mine.data)


def test_held_out_rows_are_never_trained_on(pool: Pool) -> None:
    for task in real_tasks("real-test", pool, 60):
        rows = task_rows(task, pool).values()
        held = {row.content for splits in rows for role in ROLES[1:] for row in splits[role]}
        trained = {row.content for splits in rows for row in splits["train"]}
        assert not trained & (held | pool.held_out)
        assert all(splits["train"] for splits in rows)


def test_shuffled_answers_belong_to_other_prompts(pool: Pool) -> None:
    task = with_change(pool, "shuffled")
    source = next(s for s in task.sources if s.change == "shuffled")
    whole = pool.sources[source.name].splits
    true = {row.content for role in ROLES for row in whole[role]}
    answers = {row.messages[-1] for role in ROLES for row in whole[role]}
    for rows in task_rows(task, pool)[source.name].values():
        assert rows
        assert not {row.content for row in rows} & true
        assert {row.messages[-1] for row in rows} <= answers


def test_repeated_rows_are_few(pool: Pool) -> None:
    task = with_change(pool, "repeated")
    source = next(s for s in task.sources if s.change == "repeated")
    rows = task_rows(task, pool)[source.name]
    assert len(rows["train"]) == source.rows
    assert len({row.content for row in rows["train"]}) == source.distinct < source.rows
    assert rows["test"] == pool.sources[source.name].splits["test"]


def test_long_prompts_begin_with_texts_of_the_same_split(pool: Pool) -> None:
    task = with_change(pool, "long")
    source = next(s for s in task.sources if s.change == "long")
    assert source.donor is not None
    donor = pool.sources[source.donor].splits
    for role, rows in task_rows(task, pool)[source.name].items():
        texts = "".join(row.text or "\n".join(c for _, c in row.messages) for row in donor[role])
        for row in rows:
            context = row.messages[0][1].rpartition("\n\n")[0]
            assert source.padding - 2 <= len(context) <= source.padding
            assert context[:8] in texts


def test_turns_that_are_not_learnt_and_tools_survive(tmp_path: Path) -> None:
    talk: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "name": "helper"},
        ],
        "tools": [{"name": "clock"}],
        "level": 3,
    }
    write(tmp_path / "train.jsonl", [talk])
    (row,) = read_rows({"train": tmp_path / "train.jsonl"}, "s").rows["train"]
    from mixgym.trainer.tasks.materialise import _record

    write(tmp_path / "again.jsonl", [_record(row)])
    (again,) = read_rows({"train": tmp_path / "again.jsonl"}, "s").rows["train"]
    assert (again.content, again.muted, again.columns) == (row.content, row.muted, row.columns)


@pytest.mark.skipif("MIXGYM_DATA" not in os.environ, reason="no real data: set MIXGYM_DATA")
def test_tasks_of_real_data_can_be_read(tmp_path: Path) -> None:
    pool = find_pool()
    for task in real_tasks("real-validation", pool, 8):
        splits = rows_of(load_config(materialise(task, pool, tmp_path) / CONFIG))
        trained = {row.content for own in splits.values() for row in own["train"]}
        assert not trained & pool.held_out
        assert min(len(own[role]) for own in splits.values() for role in ROLES) >= 8


def test_the_command_writes_tasks_that_run(root: Path, tmp_path: Path) -> None:
    words = [
        "tasks",
        "real-validation",
        "--pool",
        str(root),
        "--limit",
        "2",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["tasks"]
    assert [task["name"] for task in found] == ["real-validation-0000", "real-validation-0001"]
    for task in found:
        assert {*load_config(task["config"]).sources} == {*task["sources"]}
    told = CliRunner().invoke(app, words)
    assert "mixgym finetune" in told.output
    assert CliRunner().invoke(app, [*words, "--model", "2m"]).exit_code == 2
