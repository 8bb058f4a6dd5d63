"""One kind of table for everything that is chosen by a word.

A word is built in, registered by a decorator or a call, declared by an installed distribution
(an entry point), or written ``module:attribute``. A table is a dict of the first two; what it lacks
it looks for outside, when it is asked for. So the order in which plug-ins are imported changes
nothing, and a list of words imports none of them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.plugins.outside import declared, distribution_of, import_module, load_word

Entry = TypeVar("Entry")
Thing = TypeVar("Thing")

BUILT_IN = "built in"

_UNIMPORTABLE = ("__main__",)  # modules that another process does not find by their name


@dataclass(frozen=True)
class _Registered(Generic[Entry]):
    """What a call of :meth:`Registry.register` put into a table."""

    entry: Entry
    thing: Any
    module: str
    place: str


class Registry(dict[str, Entry]):
    """A table of words that finds plug-ins.

    ``table[word]`` is the quick way, for words that were checked by :meth:`find` before. Going
    through the table shows what is built in or registered, and never imports anything.

    Args:
        noun: what an entry is, such as ``reward``.
        key: of the configuration that holds its words, for errors.
        group: of the entry points that declare more of them.
        adopt: ``(where, thing, **declared) -> entry``: makes an entry of what a plug-in is, or
            raises a ConfigError that begins with ``where``.
        built_in: the package's own.
        reserved: words, or beginnings of words before a colon, that have a meaning of their own.
    """

    _all: "dict[str, Registry[Any]]" = {}  # noqa: RUF012 - of the class: every table, by its group

    def __init__(
        self,
        noun: str,
        key: str,
        group: str,
        adopt: Callable[..., Entry],
        built_in: Mapping[str, Entry],
        reserved: Iterable[str] = (),
    ) -> None:
        super().__init__(built_in)
        self.noun, self.key, self.group = noun, key, group
        self._adopt = adopt
        self._own = frozenset(built_in)
        self._reserved = frozenset(reserved)
        self._registered: dict[str, _Registered[Entry]] = {}
        self._found: dict[str, Entry] = {}
        self._all[group] = self

    # --- ways in ----------------------------------------------------------------------------------

    def register(self, word: str, thing: Any = None, **declared_: Any) -> Any:
        """Put a plug-in into the table; without ``thing`` a decorator that does so.

        Args:
            word: its name.
            thing: a function, a class or an entry, as its kind takes them.
            declared_: fields of the entry that a function cannot tell, such as what it costs.

        Returns:
            The thing itself, so that it stays what it was.

        Raises:
            ConfigError: for a word that is taken, or a thing that is no such plug-in.
        """
        if thing is None:
            return lambda given: self.register(word, given, **declared_)
        entry = self._adopt(f"{self.noun} {word!r}", thing, **declared_)
        module = _caller()
        place = f"{module}.{getattr(thing, '__qualname__', word)}"
        self._check_free(word, place)
        self._registered[word] = _Registered(entry, thing, module, place)
        self[word] = entry
        return thing

    def _check_free(self, word: str, place: str) -> None:
        """Refuse a word that is taken; a cell of a notebook may be run again.

        Raises:
            ConfigError: naming who has the word.
        """
        if ":" in word or word in self._reserved or not word.strip():
            raise ConfigError(f"{self.noun} {word!r}: give it a plain name, without a colon")
        known = self._registered.get(word)
        if word in self and (known is None or known.place != place):
            raise ConfigError(
                f"{self.noun} {word!r}: the word is taken ({self.origin(word)}); choose another"
            )

    def knows(self, word: str) -> bool:
        """Whether a word is in the table, or declared, or written as a plug-in outside."""
        return word in self or word in declared(self.group) or self._is_outside(word)

    def _is_outside(self, word: str) -> bool:
        return ":" in word and word.partition(":")[0] not in self._reserved

    def __missing__(self, word: str) -> Entry:
        return self.find(word)

    def find(self, word: str, key: str | None = None) -> Entry:
        """What a word stands for; of a plug-in it is imported and looked at once.

        Args:
            word: what was written.
            key: where, for errors, if not in the table's own key.

        Raises:
            ConfigError: the word is unknown, stands for two things, or for something that is no
                such plug-in.
        """
        where = f"{key or self.key}={word}"
        if word in self:
            self._check_unique(word, where)
            return dict.__getitem__(self, word)
        if word not in self._found:
            thing = self._load(word, where)
            known = [one.entry for one in self._registered.values() if one.thing is thing]
            self._found[word] = known[0] if known else self._adopt(where, thing)
        return self._found[word]

    def _load(self, word: str, where: str) -> Any:
        if word in declared(self.group):
            (point,) = self._check_unique(word, where)
            return load_word(point.value, f"{where} ({distribution_of(point)}: {point.value})")
        if self._is_outside(word):
            return load_word(word, where)
        raise ConfigError(f"{where}: unknown {self.noun}; {did_you_mean(word, self.words())}")

    def _check_unique(self, word: str, where: str) -> tuple[Any, ...]:
        """The entry points of a word, one at most.

        Raises:
            ConfigError: naming those who share it, and how each is reached.
        """
        registered = self._registered.get(word)
        points = declared(self.group).get(word, ())
        if registered is not None:  # a module may register what its distribution declares
            points = tuple(p for p in points if p.value.partition(":")[0] != registered.module)
        owners = [f"{distribution_of(point)} (write {point.value})" for point in points]
        owners = [self.origin(word), *owners] if word in self else owners
        if len(owners) > 1:
            raise ConfigError(
                f"{where}: {' and '.join(owners)} share the word; uninstall one, or have the "
                "plug-in renamed"
            )
        return points

    # --- what there is ----------------------------------------------------------------------------

    def words(self) -> list[str]:
        """Every word that is known without an import."""
        return [*self, *(word for word in declared(self.group) if word not in self)]

    def origin(self, word: str) -> str:
        """Where a word comes from: built in, a distribution with its version, or a module."""
        if word in self._registered:
            return f"module {self._registered[word].module}"
        if word in self:
            return BUILT_IN if word in self._own else "this process"
        points = declared(self.group).get(word, ())
        if points:
            return " and ".join(distribution_of(point) for point in points)
        return f"module {word.partition(':')[0]}"

    def listed(self) -> Iterator[tuple[str, str, str]]:
        """Word, what is said of it, and where it comes from; nothing is imported."""
        for word in self.words():
            if word in self:
                entry = dict.__getitem__(self, word)
                yield word, str(getattr(entry, "summary", "")), self.origin(word)
            else:
                points = " and ".join(point.value for point in declared(self.group)[word])
                yield word, f"plug-in {points}", self.origin(word)

    def holds(self, thing: Any) -> bool:
        """Whether a thing was registered here, or is what an entry of the table is made of."""
        return any(one.thing is thing for one in self._registered.values())

    def modules(self) -> dict[str, str]:
        """Registered word -> module that registers it when it is imported."""
        return {
            word: one.module
            for word, one in self._registered.items()
            if one.module not in _UNIMPORTABLE
        }


def _caller() -> str:
    """The module whose code registers something: what another process imports to do the same."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "__main__"))


def registries() -> dict[str, Registry[Any]]:
    """Group -> table, of the tables that were imported so far."""
    return dict(Registry._all)


def modules_behind(words: Iterable[str]) -> list[str]:
    """The modules to import for registered words to be known, sorted."""
    known = frozenset(words)
    return sorted(
        {
            module
            for table in Registry._all.values()
            for word, module in table.modules().items()
            if word in known
        }
    )


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that register plug-ins.

    Raises:
        ConfigError: if one cannot be imported.
    """
    for name in names:
        import_module(name, f"plugins={name}")
