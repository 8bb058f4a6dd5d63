"""What stands outside the package: ``module:attribute``, and what distributions declare.

Nothing is imported before it is asked for by its word; what distributions declare is read from
their metadata. Imports nothing but the standard library.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

from mixgym.envs.errors import ConfigError, did_you_mean


def load_word(word: str, where: str) -> Any:
    """What ``module:attribute`` stands for, imported now.

    Args:
        word: the attribute may have dots, ``module:Class.name``.
        where: what errors call it, such as ``environment.reward=lunar:calm``.

    Raises:
        ConfigError: there is no such module, it cannot be imported, or lacks the attribute.
    """
    module_name, _, path = word.partition(":")
    if not module_name or not path:
        raise ConfigError(f"{where}: a plug-in is written module:attribute")
    found: Any = import_module(module_name, where)
    for name in path.split("."):
        if not hasattr(found, name):
            known = [one for one in vars(found) if not one.startswith("_")]
            place = getattr(found, "__file__", None) or module_name
            raise ConfigError(f"{where}: {place} has no {name!r}; {did_you_mean(name, known)}")
        found = getattr(found, name)
    return found


def load_object(path: "str | Callable[..., Any]") -> Any:
    """What ``module:name`` in our own tables stands for, imported now; an object is itself."""
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def import_module(name: str, where: str) -> Any:
    """The module of that name, imported now; arguments and errors as of :func:`load_word`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: Python finds no module {error.name!r}; install it, or put its folder "
                "on the path (PYTHONPATH=FOLDER)"
            ) from None
        raise ConfigError(
            f"{where}: module {name} needs {error.name!r}, which is not installed"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # whatever the code of somebody else raises
        raise ConfigError(
            f"{where}: importing {name} failed ({type(error).__name__}: {error}); correct it there"
        ) from error


def declared(group: str) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    """Word -> entry points of that name in a group; nothing is imported."""
    return _declared(group, tuple(sys.path))


@lru_cache(maxsize=64)
def _declared(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        # a distribution that stands on the path twice is one
        found.setdefault(point.name, {})[point.value, distribution_of(point)] = point
    return {name: tuple(points.values()) for name, points in sorted(found.items())}


def distribution_of(point: metadata.EntryPoint) -> str:
    """Name and version of the distribution that declares an entry point."""
    if point.dist is None:
        return "an unknown distribution"
    return f"{point.dist.name} {point.dist.version}"


def summary_of(thing: Any) -> str:
    """The first sentence of an object's docstring, without its full stop."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def check_signature(function: Callable[..., Any], arguments: tuple[str, ...], where: str) -> None:
    """Refuse a function that cannot be called with so many arguments.

    Args:
        function: any callable.
        arguments: names of what it is called with, in order.
        where: what errors call it.

    Raises:
        ConfigError: showing its signature, and the one that is wanted.
    """
    wanted = f"({', '.join(arguments)})"
    if not callable(function):
        raise ConfigError(
            f"{where}: is {function!r}, a {type(function).__name__}; give a function of {wanted}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some are written in C and have none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ConfigError(
            f"{where}: takes {signature}, and is called with {wanted}; correct its arguments"
        ) from None
