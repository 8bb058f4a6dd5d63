"""The three floors are one package: imported under one name, shipped whole, layered one way."""

import ast
import importlib.util
import pickle
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixgym.envs.options import WorldOptions
from mixgym.trainer.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("envs", "agents", "trainer")  # from the ground up
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.mark.parametrize("floor", FLOORS)
def test_a_bare_import_is_refused_with_advice(floor: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import {floor}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"write `import mixgym.{floor}`" in result.stderr


@pytest.mark.parametrize("floor", FLOORS)
def test_the_links_are_relative(floor: str) -> None:
    assert (ROOT / "mixgym" / floor).readlink() == Path("..") / floor


def imported_by(file: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it the import stands."""
    package = ["mixgym", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_from_above_or_under_a_bare_name(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    refused = (*(f"mixgym.{name}." for name in above), *(f"{name}." for name in FLOORS))
    offences = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in sorted((ROOT / floor).rglob("*.py"))
        for module in imported_by(file)
        if f"{module}.".startswith(refused)
    ]
    assert offences == []


def test_pickles_store_the_package_name() -> None:
    for options in (WorldOptions(), RunConfig()):
        data = pickle.dumps(options)
        assert type(options).__module__.encode() in data
        assert type(options).__module__.startswith("mixgym.")
        assert pickle.loads(data) == options


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        f"mixgym.{'.'.join(file.parent.relative_to(ROOT).parts)}"
        for floor in FLOORS
        for file in (ROOT / floor).rglob("__init__.py")
    }
    assert setuptools["packages"] == sorted({"mixgym", *folders})
    assert setuptools["package-dir"] == {"mixgym": "mixgym", **{f"mixgym.{f}": f for f in FLOORS}}


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_the_wheel_holds_the_whole_tree(tmp_path: Path, links: bool) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, and nothing is fetched here")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (*FLOORS, "mixgym"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=CACHES)
    if not links:  # an archive, or a clone on a system that has none
        for floor in FLOORS:
            (tree / "mixgym" / floor).unlink()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "README.md").touch()
    wheel = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([sys.executable, *wheel, str(tree)], check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    expected = {"mixgym/__init__.py", "mixgym/__main__.py", "mixgym/py.typed"} | {
        f"mixgym/{file.relative_to(tree).as_posix()}"
        for floor in FLOORS
        for file in (tree / floor).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert shipped == expected
