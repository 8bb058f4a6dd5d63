"""The demonstration: a scripted against a uniform schedule on the embedded sources.

``python -m mixgym.trainer.demo [FOLDER]`` needs no file and no network: it fine-tunes the 0.1M
preset twice from the same weights and with the same order of rows, prints what each schedule left,
and leaves TensorBoard curves and a picture in the folder (``runs/demo``).
"""

import sys
from pathlib import Path
from typing import Any

from mixgym.trainer import storage
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetune import PICTURE, finetune, quiet_transformers
from mixgym.trainer.tables import number, show, table

SETTINGS: dict[str, Any] = {
    "data": {"max_length": 128, "strata_by": "column:difficulty"},
    "model": {"name": "0.1m"},
    "training": {"steps": 400, "interval": 20, "packs": 8, "learning_rate": 5e-3},
}
# first what is short and easy, then what takes long; noise never
SCRIPT = {
    "points": {
        0.0: {"addition": 1, "reversal": 1, "sorting": 1, "lookup": 1, "numbers": 1, "brackets": 1},
        0.5: {"addition": 2, "reversal": 2, "sorting": 2, "lookup": 1, "numbers": 2, "brackets": 1},
        1.0: {"addition": 2, "reversal": 3, "sorting": 3, "lookup": 1, "numbers": 3, "brackets": 1},
    },
    "strata": {0.0: [3, 2, 1, 1], 0.5: [1, 1, 1, 1], 1.0: [1, 1, 2, 2]},
}
AGENTS: dict[str, dict[str, Any]] = {"uniform": {}, "scripted": SCRIPT}


def demo(folder: Path) -> dict[str, Any]:
    """Run both schedules; returns the summary of each by agent."""
    summaries = {}
    for name, options in AGENTS.items():
        out = folder / name
        if out.exists():
            storage.remove_folder(out)
        config = RunConfig.model_validate(
            {**SETTINGS, "agent": {"name": name, "options": options}, "run": {"dir": str(out)}}
        )
        summaries[name] = finetune(config, progress=True)
    return summaries


def outcome_table(summaries: dict[str, Any]) -> Any:
    """Test NLL after fine-tuning, source by source and agent by agent."""
    agents = list(summaries)
    first = summaries[agents[0]]
    rows = [
        [
            name,
            number(row["target"], 1),
            number(row["test_before"]),
            *(number(summaries[agent]["sources"][name]["test_after"]) for agent in agents),
        ]
        for name, row in first["sources"].items()
    ]
    mean = [number(summaries[agent]["test"]["mean_after"]) for agent in agents]
    worst = [number(summaries[agent]["test"]["worst_after"]) for agent in agents]
    rows.append(["target mean", "", number(first["test"]["mean_before"]), *mean])
    rows.append(["worst target", "", "", *worst])
    return table(
        f"test NLL (nats per supervised token) after {first['supervised_tokens']:,} "
        "supervised tokens, one seed",
        ["source", "target", "before", *agents],
        rows,
    )


def main() -> None:
    """Run the demonstration and say where to look."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    quiet_transformers()
    summaries = demo(folder)
    show(
        outcome_table(summaries),
        f"curves:  tensorboard --logdir {folder}",
        f"picture: {folder / 'scripted' / PICTURE}",
        f"model:   {folder / 'scripted' / 'model'} (load it with from_pretrained)",
    )


if __name__ == "__main__":
    main()
