import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins import registry as module
from mixgym.envs.plugins.outside import check_signature, declared, summary_of
from mixgym.envs.plugins.registry import BUILT_IN, Registry, modules_behind

GROUP = "mixgym.test_things"


@dataclass(frozen=True)
class Kind:
    summary: str
    compute: Callable[[Any], Any]
    cost: int = 1


def adopt(where: str, thing: Any, **declared_: Any) -> Kind:
    if isinstance(thing, Kind):
        return thing
    check_signature(thing, ("seen",), where)
    return Kind(**{"summary": summary_of(thing), "compute": thing, **declared_})


@pytest.fixture
def table() -> Iterator[Registry[Kind]]:
    yield Registry("thing", "a.thing", GROUP, adopt, {"plain": Kind("plain one", abs)}, ["column"])
    del Registry._all[GROUP]


Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes modules, and distributions that declare entry points, into a folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, text: str = "", points: str = "", version: str = "1.2") -> None:
        if text:
            (tmp_path / f"{name}.py").write_text(text)
        if points:
            info = tmp_path / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
            (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
        module_names.append(name)
        declared_cache_clear()

    module_names: list[str] = []
    yield make  # type: ignore[misc]
    for name in module_names:
        sys.modules.pop(name, None)
    declared_cache_clear()


def declared_cache_clear() -> None:
    from mixgym.envs.plugins import outside

    outside._declared.cache_clear()


CODE = '''
def calm(seen):
    """Half of it.

    More is said here."""
    return seen / 2

def wide(one, two):
    return one

NUMBER = 3
'''


def test_what_is_built_in_is_a_plain_table(table: Registry[Kind]) -> None:
    assert list(table) == ["plain"]
    assert table["plain"] is table.find("plain")
    assert table.origin("plain") == BUILT_IN
    assert list(table.listed()) == [("plain", "plain one", BUILT_IN)]


def test_an_unknown_word_says_what_could_be_meant(table: Registry[Kind]) -> None:
    with pytest.raises(ConfigError, match=r"a\.thing=plian: unknown thing; did you mean plain\?"):
        table.find("plian")
    with pytest.raises(ConfigError, match="unknown thing"):
        table["plian"]


def test_a_decorator_leaves_the_function_as_it_was(table: Registry[Kind]) -> None:
    @table.register("calm", cost=5)
    def calm(seen: float) -> float:
        """Half of it."""
        return seen / 2

    assert calm(4.0) == 2.0
    assert table["calm"] == Kind("Half of it", calm, 5)
    assert table.origin("calm") == f"module {__name__}"


def test_a_call_takes_an_entry_as_well(table: Registry[Kind]) -> None:
    kind = Kind("made by hand", abs)
    assert table.register("hand", kind) is kind
    assert table["hand"] is kind


def test_a_taken_word_is_refused_and_the_same_definition_is_not(table: Registry[Kind]) -> None:
    def define(value: int) -> Callable[[Any], Any]:
        def calm(seen: Any) -> Any:
            return value

        return calm

    table.register("calm", define(1))
    table.register("calm", define(2))  # a cell of a notebook that is run again
    assert table["calm"].compute(0) == 2
    with pytest.raises(ConfigError, match=r"thing 'plain': the word is taken \(built in\)"):
        table.register("plain", define(1))
    with pytest.raises(ConfigError, match=r"'calm': the word is taken \(module .*test_registry\)"):
        table.register("calm", lambda seen: seen)
    with pytest.raises(ConfigError, match="give it a plain name"):
        table.register("a:b", define(1))
    with pytest.raises(ConfigError, match="give it a plain name"):
        table.register("column", define(1))


def test_a_module_and_its_attribute(table: Registry[Kind], write: Write) -> None:
    write("lunar_a", CODE)
    kind = table.find("lunar_a:calm")
    assert (kind.summary, kind.compute(4.0)) == ("Half of it", 2.0)
    assert table["lunar_a:calm"] is kind, "looked at once"
    assert list(table) == ["plain"], "what was found outside is not listed"
    assert table.origin("lunar_a:calm") == "module lunar_a"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "lunar_b:clam",
            r"a\.thing=lunar_b:clam: .*lunar_b\.py has no 'clam'; did you mean calm",
        ),
        ("lunar_x:calm", r"Python finds no module 'lunar_x'; install it, or put its folder on"),
        ("lunar_b:wide", r"lunar_b:wide: takes \(one, two\), and is called with \(seen\)"),
        ("lunar_b:NUMBER", r"lunar_b:NUMBER: is 3, a int; give a function of \(seen\)"),
        ("broken_b:calm", r"importing broken_b failed \(ZeroDivisionError: division by zero\)"),
        ("needy_b:calm", r"module needy_b needs 'absent_b', which is not installed"),
        ("column:level", r"unknown thing"),
        (":calm", r"is written module:attribute"),
    ],
)
def test_what_is_wrong_outside_is_one_sentence(
    table: Registry[Kind], write: Write, word: str, sentence: str
) -> None:
    write("lunar_b", CODE)
    write("broken_b", "1 / 0")
    write("needy_b", "import absent_b")
    with pytest.raises(ConfigError, match=sentence) as caught:
        table.find(word)
    assert "\n" not in str(caught.value)


def test_a_distribution_declares_words_that_are_read_lazily(
    table: Registry[Kind], write: Write
) -> None:
    write("lunar_c", CODE, "serene = lunar_c:calm")
    assert table.words() == ["plain", "serene"]
    assert list(table.listed())[1] == ("serene", "plug-in lunar_c:calm", "lunar_c 1.2")
    assert "lunar_c" not in sys.modules
    assert table["serene"].compute(4.0) == 2.0
    with pytest.raises(ConfigError, match=r"did you mean serene\?"):
        table.find("seren")


def test_what_a_distribution_declares_wrongly_is_said_with_its_name(
    table: Registry[Kind], write: Write
) -> None:
    write("lunar_d", CODE, "serene = lunar_d:clam")
    with pytest.raises(
        ConfigError, match=r"a\.thing=serene \(lunar_d 1\.2: lunar_d:clam\): .*did you mean calm"
    ):
        table.find("serene")


def test_two_owners_of_a_word_are_both_named(table: Registry[Kind], write: Write) -> None:
    write("lunar_e", CODE, "serene = lunar_e:calm\nplain = lunar_e:calm")
    write("solar_e", CODE, "serene = solar_e:calm")
    with pytest.raises(
        ConfigError,
        match=r"lunar_e 1\.2 \(write lunar_e:calm\) and solar_e 1\.2 \(write solar_e:calm\) share",
    ):
        table.find("serene")
    with pytest.raises(ConfigError, match=r"built in and lunar_e 1\.2 \(write lunar_e:calm\)"):
        table.find("plain")
    assert table.find("lunar_e:calm").summary == "Half of it"


REGISTERS = """
from mixgym.envs.plugins.registry import registries

@registries()["mixgym.test_things"].register("serene", cost=7)
def calm(seen):
    return seen
"""


def test_what_a_decorator_declares_counts_by_every_way(table: Registry[Kind], write: Write) -> None:
    write("lunar_f", REGISTERS, "serene = lunar_f:calm")
    assert table.find("serene").cost == 7, "declared, and registered by the import"
    assert table.find("serene") is table.find("lunar_f:calm")
    assert modules_behind(["serene", "plain"]) == ["lunar_f"]


def test_modules_that_nobody_else_finds_are_not_noted(
    table: Registry[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNIMPORTABLE", (__name__,))
    table.register("calm", lambda seen: seen)
    assert modules_behind(["calm"]) == []


def test_a_word_is_known_without_an_import(table: Registry[Kind], write: Write) -> None:
    write("lunar_g", CODE, "serene = lunar_g:calm")
    known = {word: table.knows(word) for word in ("plain", "serene", "x:y", "column:a", "other")}
    assert known == {"plain": True, "serene": True, "x:y": True, "column:a": False, "other": False}
    assert "lunar_g" not in sys.modules
    assert list(declared(GROUP)) == ["serene"]
