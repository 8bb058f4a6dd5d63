"""``mixgym orders`` as the command line asks for it, and its tables."""

import sys
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import quiet_transformers
from mixgym.trainer.orders.study import study
from mixgym.trainer.runs.tables import number, show, table


def orders_command(
    config: RunConfig,
    *,
    runs: int | None = None,
    kind: str | None = None,
    json_output: bool = False,
) -> dict[str, Any]:
    """Run the study, and print its tables unless JSON is wanted.

    Args:
        config: of the study.
        runs: instead of ``orders.runs``.
        kind: instead of ``orders.kind``.
        json_output: print nothing.

    Raises:
        ConfigError: for fewer than two runs, or an unknown kind.
    """
    quiet_transformers()
    if runs is not None and runs < 2:
        raise ConfigError(f"--runs {runs}: an order shows beside another one; give at least 2")
    if kind is not None and kind not in ("samples", "positions"):
        raise ConfigError(f"--kind {kind}: choose samples or positions")
    given = {"runs": runs, "kind": kind}
    update = {name: value for name, value in given.items() if value is not None}
    own = config.model_copy(update={"orders": config.orders.model_copy(update=update)})
    summary = study(own, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    if not json_output:
        show(_models_table(summary), _effects_table(summary), f"every sample: {summary['csv']}")
    return summary


def _models_table(summary: dict[str, Any]) -> Any:
    """Losses of base, runs and merges."""
    means = {
        row["precision"]: row["test"]
        for row in summary["models"]
        if row["name"] == "mean of the runs"
    }
    rows = [
        [
            f"{row['name']}" + (" (bf16)" if row["precision"] == "bfloat16" else ""),
            number(row["select"], 4),
            number(row["test"], 4),
            f"{row['test'] - means[row['precision']]:+.4f}",
            "-" if row["zero_share"] is None else f"{100 * row['zero_share']:.2f}%",
        ]
        for row in summary["models"]
    ]
    title = (
        f"{summary['runs']} runs, {summary['samples']:,} samples, {summary['epochs']} epochs, "
        f"{summary['steps']} steps; order of {summary['kind']}"
    )
    columns = ["model", "select NLL", "test NLL", "to the runs' mean", "equal to the base"]
    return table(title, columns, rows)


def _effects_table(summary: dict[str, Any]) -> Any:
    """The effect of the position and its controls."""
    rows = [
        [
            name,
            *(_interval(effect[key]) for key in ("slope", "gap")),
            f"{effect['pearson']:+.3f}",
            f"{effect['spearman']:+.3f}",
        ]
        for name, effect in summary["effects"].items()
    ]
    title = "final loss by position, beside the same sample in the other runs (95 % over runs)"
    columns = ["position in", "slope", "first less last tenth", "Pearson", "Spearman"]
    return table(title, columns, rows)


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.4f} ({estimate['low']:+.4f} .. {estimate['high']:+.4f})"
