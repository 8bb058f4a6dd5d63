"""What a pool finds, how it is split, and that nothing held out is left in train rows."""

from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.errors import ConfigError
from mixgym.trainer.tasks.pool import ROLES, VARIABLE, Pool, find_pool

from .conftest import fill, pairs, write


def test_sources_are_found_at_two_depths_and_as_files(pool: Pool) -> None:
    assert list(pool.sources) == [
        "inner-maps", "inner-odes", "inner-sums", "noise", "plain", "said", "talk",
    ]  # fmt: skip
    assert [name for name, source in pool.sources.items() if source.is_noise] == ["noise"]
    assert [name for name, source in pool.sources.items() if not source.answers] == ["plain"]


def test_files_are_taken_as_they_are_and_missing_splits_cut(pool: Pool) -> None:
    def sizes(name: str) -> list[int]:
        return [len(pool.sources[name].splits[role]) for role in ROLES]

    assert sizes("inner-sums") == [200, 40, 40]
    assert sizes("talk") == [300 - 2 * 30, 30, 30], "a tenth each"
    assert sizes("said") == [90 - 2 * 9, 9, 9]
    for source in pool.sources.values():
        contents = [{row.content for row in source.splits[role]} for role in ROLES]
        assert not contents[0] & contents[1] | contents[0] & contents[2] | contents[1] & contents[2]


def test_no_train_row_is_held_out_in_another_source(tmp_path: Path) -> None:
    root = fill(tmp_path)
    write(root / "other" / "train.jsonl", pairs("sums", 150, 270))  # 200 to 269 are held out
    write(root / "other" / "valid.jsonl", pairs("new", 0, 9))
    write(root / "other" / "test.jsonl", pairs("new", 5, 19))
    pool = find_pool(root)
    other = pool.sources["other"].splits
    assert [row.messages[0][1] for row in other["train"]] == [f"sums {i}?" for i in range(150, 200)]
    assert len(other["valid"]) == 5, "four are tested"
    for source in pool.sources.values():
        assert not {row.content for row in source.splits["train"]} & pool.held_out


def test_the_environment_variable_names_the_pool(
    root: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(root))
    assert find_pool() == pool


def test_what_cannot_be_a_pool_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    cases: list[tuple[Any, str]] = [
        (None, f"--pool FOLDER, or set {VARIABLE}"),
        (tmp_path / "absent", "--pool=.*no such folder"),
        (tmp_path, "holds no source"),
    ]
    for folder, words in cases:
        with pytest.raises(ConfigError, match=words):
            find_pool(folder)
    write(tmp_path / "only" / "train.jsonl", pairs("a", 0, 9))
    write(tmp_path / "only" / "test.jsonl", pairs("a", 0, 9))
    with pytest.raises(ConfigError, match="no train rows are left"):
        find_pool(tmp_path)
