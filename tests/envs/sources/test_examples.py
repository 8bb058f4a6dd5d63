import doctest
from importlib import import_module

import pytest

MODULES = ["streams", "templates", "encoding", "difficulty", "number_words"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_documentation_hold(name):
    result = doctest.testmod(import_module(f"mixgym.envs.sources.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
