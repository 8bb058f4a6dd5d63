"""The house is as its description says: no circles, no halls, and a listing that is true.

``python tests/test_structure.py`` writes the listing of CONTRIBUTING.md anew.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("trainer", "agents", "envs")  # from the top
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LISTING = r"(<!-- folders: [^\n]*-->\n).*?(<!-- end of folders -->)"
MOST_LINES = 400
MOST_MODULES = 14


def modules() -> dict[str, Path]:
    """Every module of the three floors by its dotted name; packages by theirs."""
    files = [file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")]
    return {
        ".".join(("mixgym", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): file
        for file in files
    }


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """What a file imports of ours, wherever the import stands: in functions, for type checking."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known.keys()
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in known else {node.module} & known.keys()
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            start = stack.index(name)
            if len(stack) - start > 1 or name in graph[name]:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    known = modules()
    assert circles({name: imports(file, known) for name, file in known.items()}) == []


def test_no_module_is_long() -> None:
    lengths = {
        file.relative_to(ROOT): len(file.read_text(encoding="utf-8").splitlines())
        for file in modules().values()
    }
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_folder_is_a_hall() -> None:
    folders = {file.parent for file in modules().values()}
    counts = {
        str(folder.relative_to(ROOT)): len(set(folder.glob("*.py")) - {folder / "__init__.py"})
        for folder in folders
    }
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def listing() -> Iterator[str]:
    """A line for every folder: its place, and the first sentence of its docstring."""
    for floor in FLOORS:
        for file in sorted((ROOT / floor).rglob("__init__.py")):
            folder = file.parent.relative_to(ROOT)
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            name = "  " * (len(folder.parts) - 1) + f"{folder.name}/"
            yield f"    {name:<18} {text.splitlines()[0].rstrip('.')}"


def with_listing(text: str) -> str:
    lines = "\n".join(listing())
    text, count = re.subn(
        LISTING, lambda match: f"{match[1]}\n{lines}\n\n{match[2]}", text, flags=re.DOTALL
    )
    assert count == 1
    return text


def test_the_listing_of_folders_is_true() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert text == with_listing(text), "run: python tests/test_structure.py"


if __name__ == "__main__":
    CONTRIBUTING.write_text(with_listing(CONTRIBUTING.read_text(encoding="utf-8")))
