"""What ``mixgym plan`` prints: first what everybody asks, in sentences; on request figures.

The report is that of :func:`mixgym.trainer.reports.dry_run.make_plan`.
"""

from collections.abc import Iterator
from typing import Any

from mixgym.envs.options import SPLITS
from mixgym.trainer.reports.packing_report import packing_lines
from mixgym.trainer.runs.tables import BUDGET_WORDS, number, table

_REPEATED = 4.0
"""Passes over a source from which on it is named; more than some 15 to 20 rarely help."""


def plan_text(report: dict[str, Any]) -> list[Any]:
    """What the run will do, what it will cost, what to look out for, and a row per source."""
    return [
        *_sentences(report),
        *(f"warning: {line}" for line in report["warnings"]),
        _source_table(report["sources"]),
    ]


def plan_details(report: dict[str, Any]) -> list[Any]:
    """Strata, counts of rows, probes, and the figures of packing."""
    cost, sources = report["cost"], report["sources"]
    counts = [
        f"{name}: {', '.join(f'{key} {value:,}' for key, value in row['counts'].items())}"
        for name, row in sources.items()
    ]
    return [
        _strata_table(sources),
        *counts,
        f"measuring: {cost['reward_evaluation_tokens']:,} tokens per decision; the test split once "
        f"before and once after, {cost['test_evaluation_tokens']:,} tokens each",
        *_probe_lines(cost),
        *packing_lines(report["packing"]),
    ]


def _sentences(report: dict[str, Any]) -> Iterator[str]:
    run, cost, memory = report["run"], report["cost"], report["memory"]
    yield (
        f"run: {run['agent']} trains {run['model']} on a budget of {run['budget']:,} "
        f"{BUDGET_WORDS[run['budget_unit']]}: {run['steps']} steps in {run['decisions']} "
        f"decisions, at a learning rate of {run['learning_rate']:g} (its peak); "
        f"{run['tokens']:,} tokens are read, "
        f"{run['supervised_tokens']:,} of them are learnt (supervised); packs are "
        f"{100 * run['fill']:.1f}% full"
    )
    often = {n: row["expected_epochs"] for n, row in report["sources"].items()}
    repeated = [
        f"{name} {passes:.0f} times" for name, passes in often.items() if passes > _REPEATED
    ]
    if repeated:
        names = ", ".join(repeated)
        yield f"passes: read over and over are {names} (sources.NAME.max_epochs caps it)"
    predicted = report["packing"].get("as_configured")
    if predicted:
        yield (
            f"time: about {_duration(predicted['seconds'])} of training on "
            f"{report['packing']['hardware']}, by the cost model (mixgym profile fits it to this "
            "machine)"
        )
    yield (
        f"compute: training reads {run['tokens']:,} tokens; held-out losses another "
        f"{cost['measure_tokens']:,} ({100 * cost['measured_share_of_decisions']:.1f}% of the "
        f"compute), probes {cost['probe_tokens']:,} "
        f"({100 * cost['probed_share_of_decisions']:.1f}%)"
    )
    yield (
        f"memory: {memory['parameters']:,} parameters, "
        f"{memory['weights_gradients_optimizer_bytes'] / 2**20:,.0f} MiB with gradients and "
        f"AdamW, logits {memory['largest_logits_bytes'] / 2**20:,.0f} MiB at most"
    )
    if cost["grading_tokens"]:
        yield (
            f"grading the rows: {cost['grading_tokens']:,} tokens of a pass forward once, then "
            "cached; until then strata are by length"
        )


def _duration(seconds: float) -> str:
    """A number of seconds in the largest unit that leaves it above 1.

    >>> _duration(19.2), _duration(600.0), _duration(9000.0)
    ('19 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _source_table(sources: dict[str, Any]) -> Any:
    rows = [
        [
            name,
            number(row["target"], 1),
            " / ".join(f"{row['rows'][split]:,}" for split in SPLITS),
            f"{row['tokens']:,}",
            f"{row['supervised_tokens']:,}",
            number(row["tokens_per_supervised_token"], 1),
            f"{row['expected_supervised_tokens']:,}",
            number(row["expected_epochs"], 2),
        ]
        for name, row in sources.items()
    ]
    columns = ["source", "target", "rows train / reward / select / test", "tokens", "supervised"]
    more = ["read per supervised", "expected supervised", "epochs"]
    return table("sources", [*columns, *more], rows)


def _strata_table(sources: dict[str, Any]) -> Any:
    rows = [
        [
            name,
            *(
                f"{s['rows']:,} rows, {s['supervised_tokens']:,}, <= {s['longest']}"
                for s in row["strata"]
            ),
        ]
        for name, row in sources.items()
    ]
    groups = max(len(row["strata"]) for row in sources.values())
    return table(
        "strata of the training rows: rows, supervised tokens, longest row in tokens",
        ["source", *(f"stratum {g}" for g in range(groups))],
        rows,
    )


def _probe_lines(cost: dict[str, Any]) -> list[str]:
    """One line on the probes, if there are any."""
    if not cost["probes"]:
        return []
    periods = ", ".join(f"{name} every {n}" for name, n in cost["probes"].items())
    return [
        f"probes: {periods} decisions; {cost['probe_tokens']:,} tokens of a pass forward, "
        f"{100 * cost['probed_share_of_decisions']:.1f}% of the compute"
    ]
