"""Property tests draw the same examples on every run: a failure is never a matter of luck."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from .ranks import run_ranks as _run_ranks

settings.register_profile("mixgym", derandomize=True, deadline=None, database=None)
settings.load_profile("mixgym")


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """``run_ranks(world, task, *arguments)``: what the task returns on each of several ranks."""
    return _run_ranks


LONG = ("test_readme.py", "test_notebooks.py", "test_demo.py")
"""Files whose tests take minutes: they go first, so that no process waits at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first; all others keep their order."""
    items.sort(key=lambda item: item.path.name not in LONG)
