"""YAML, read strictly: YAML 1.2 scalars, no key twice, and every mistake with its file and line.

``no`` is text and ``5e-1`` a number, in a run's configuration and in a recipe of merging alike.
"""

import json
import re
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mixgym.envs.errors import ConfigError

KeyPath = tuple[str | int, ...]

_SCALARS = [
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), [*list("~nN"), ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"]),
]


class StrictLoader(yaml.SafeLoader):
    """Safe, with YAML 1.2 scalars (``no`` is text, ``1e-3`` a number) and no key twice."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal: 010 is ten, not eight."""
        return int(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are text, each once."""
        self._check_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag in _NUMBER_TAGS:  # a share of the budget, say: keys are text
                key.tag = _KEY_TAGS[0]
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _KeyProblemError(line, f"the key {shown} is not text; write it in quotes")
            if key.value in seen:
                raise _KeyProblemError(
                    line,
                    f"the key {key.value!r} stands here again, first on line {seen[key.value]}; "
                    "remove or rename one",
                )
            seen[key.value] = line


class StrictDumper(yaml.SafeDumper):
    """Quotes what either YAML version would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out."""
        return True


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
StrictLoader.yaml_implicit_resolvers = {}  # instead of the 1.1 ones that it inherits
StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
for _tag, _pattern, _first in _SCALARS:
    StrictLoader.add_implicit_resolver(_tag, _pattern, _first)
    StrictDumper.add_implicit_resolver(_tag, _pattern, _first)


class _KeyProblemError(Exception):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the data, and the line of every key by its path."""
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        return loader.construct_document(node), dict(_lines_of(node, ()))
    except _KeyProblemError as error:
        raise ConfigError(f"{origin}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _lines_of(node: yaml.Node, path: KeyPath) -> "typing.Iterator[tuple[KeyPath, int]]":
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines_of(value, (*path, key.value))
            yield (*path, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines_of(item, (*path, index))


def read_mapping(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in a YAML file, and the line of every key by its path.

    Raises:
        ConfigError: if the file cannot be read, is not valid YAML, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    data, lines = parse_yaml(text, str(path))
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {shown(data)}; a mapping of options is needed")
    return data, lines


def shown(value: Any) -> str:
    """A value as short JSON; a mapping or list by its size when it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    if len(text) <= 80:
        return text
    return text[:76] + " ..."
