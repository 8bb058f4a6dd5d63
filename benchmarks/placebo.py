"""The placebo suite: every registered rule, and trained agents, where nothing is to be gained.

    python benchmarks/placebo.py [--agents RUN ...] [--tasks 64] [--only exp3,doge] [--json]

Identical sources, a source of pure noise with target 0, and a source under two names; the first two
also with held-out sets of some fifty tokens; see ``mixgym.trainer.reports.placebo``. Exit code 1 if
somebody fails who should not: a difference to uniform beyond noise on identical sources, or a
target-aware scheduler that keeps the noise.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from support.common import parse

from mixgym.trainer.reports.placebo import report
from mixgym.trainer.reports.schedulers import schedulers

HEADINGS = (
    "scheduler",
    "minds targets",
    "identical: NLL minus uniform (s.e.)",
    "largest tilt (s.e.)",
    "noise: share over uniform's",
    "in the last quarter",
    "fifty tokens, identical: NLL minus uniform (s.e.)",
    "largest tilt (s.e.)",
    "fifty tokens, noise: in the last quarter",
    "duplicate: share over uniform's",
    "apart (s.e.)",
    "verdict",
)
VERDICTS = ("identical_passed", "noise_passed", "identical_few_passed", "noise_few_passed")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table; shares are multiples of uniform's."""
    verdicts = [row[name] for name in VERDICTS]
    return [
        row["agent"],
        "yes" if row["target_aware"] else "no",
        f"{row['identical_nll']:+.4f} ({row['identical_nll_error']:.4f})",
        f"{row['identical_tilt']:+.3f} ({row['identical_tilt_error']:.3f})",
        f"{row['noise_share']:.2f}",
        f"{row['noise_late']:.2f}",
        f"{row['identical_few_nll']:+.4f} ({row['identical_few_nll_error']:.4f})",
        f"{row['identical_few_tilt']:+.3f} ({row['identical_few_tilt_error']:.3f})",
        f"{row['noise_few_late']:.2f}",
        f"{row['duplicate_share']:.2f}",
        f"{row['duplicate_apart']:+.3f} ({row['duplicate_apart_error']:.3f})",
        "fails" if False in verdicts else "passes",
    ]


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=Path, nargs="*", default=[], metavar="RUN")
    parser.add_argument("--tasks", type=int, default=64, help="of each control")
    parser.add_argument("--only", help="names, A,B,...", type=lambda text: text.split(","))
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, tasks=8, only=["uniform", "exp3"])
    torch.set_num_threads(1)
    rows = report(schedulers(arguments.agents, arguments.only), arguments.tasks)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        lines = [HEADINGS, ["---"] * len(HEADINGS), *(cells(row) for row in rows)]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    failed = [row for row in rows if False in [row[name] for name in VERDICTS]]
    return 1 if failed and not arguments.smoke else 0  # eight tasks are no evidence


if __name__ == "__main__":
    sys.exit(main())
