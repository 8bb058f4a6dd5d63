"""The examples in docstrings hold, wherever there are any."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules() -> list[str]:
    """Import names of the files that hold examples."""
    files = [
        path for floor in ("envs", "agents", "trainer") for path in (ROOT / floor).rglob("*.py")
    ]
    found = [path.relative_to(ROOT) for path in files if ">>> " in path.read_text()]
    return sorted("mixgym." + ".".join(path.with_suffix("").parts) for path in found)


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_the_documentation_hold(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert "mixgym.envs.spaces.mixture" in modules()
