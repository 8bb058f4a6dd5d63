"""Tables on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

BUDGET_WORDS = {
    "steps": "optimiser steps",
    "supervised_tokens": "supervised tokens",
    "tokens": "tokens read",
}
"""Units of a budget in words."""


def show(*items: Any) -> None:
    """Print tables or lines on standard output."""
    console = Console()
    if not console.is_terminal:  # a pipe or a log: do not fold tables at 80 columns
        console = Console(width=140)
    for item in items:
        console.print(item, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` decimals, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def finetune_table(summary: dict[str, Any]) -> Table:
    """The outcome of a fine-tuning run, source by source."""
    rows = [
        [
            name,
            number(row["target"], 1),
            f"{100 * row['share']:.1f}%",
            number(row["epochs"], 2),
            number(row["test_before"]),
            number(row["test_after"]),
        ]
        for name, row in summary["sources"].items()
    ]
    test, seconds = summary["test"], summary["time"]
    rows.append(
        ["target mean", "", "", "", number(test["mean_before"]), number(test["mean_after"])]
    )
    made = table(
        f"{summary['agent']}: {summary['steps']} steps, "
        f"{summary['supervised_tokens']:,} supervised tokens",
        ["source", "target", "share", "epochs", "test NLL before", "after"],
        rows,
    )
    model = f"; model in {summary['model']}" if summary["model"] else ""
    made.caption = (
        f"{seconds['tokens_per_cpu_second']:.0f} tokens per CPU-second, "
        f"{100 * seconds['measured_share']:.1f}% of the time measuring{model}"
    )
    made.caption_justify = "left"
    return made
