"""The demonstration: train a scheduling agent, let it drive a fine-tuning run, compare.

``python -m mixgym.trainer.demo [FOLDER]`` needs no file and no network. It trains an agent in the
fast world, shows it beside its frozen twin and two rules on tasks that it has not seen, and then
fine-tunes the 0.1M preset on the embedded sources three times, from the same weights and with the
same order of rows: under a uniform schedule, a script, and the agent. TensorBoard curves and
pictures stay in the folder (``runs/demo``). Exit code 1 if training did not change the agent.
"""

import sys
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import MODEL, PICTURE, finetune, quiet_transformers
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.training.train import train, validation_table

SETTINGS: dict[str, Any] = {
    "data": {"max_length": 128, "strata_by": "column:difficulty", "held_out_rows": 15},
    "model": {"name": "0.1m"},
    "training": {"steps": 400, "interval": 20, "packs": 8, "learning_rate": 5e-3},
}
# first what is short and easy, then what takes long; noise never
_SCRIPT = {
    "points": {
        0.0: {"addition": 1, "reversal": 1, "sorting": 1, "lookup": 1, "numbers": 1, "brackets": 1},
        0.5: {"addition": 2, "reversal": 2, "sorting": 2, "lookup": 1, "numbers": 2, "brackets": 1},
        1.0: {"addition": 2, "reversal": 3, "sorting": 3, "lookup": 1, "numbers": 3, "brackets": 1},
    },
    "strata": {0.0: [3, 2, 1, 1], 0.5: [1, 1, 1, 1], 1.0: [1, 1, 2, 2]},
}
TRAINING: dict[str, Any] = {"decisions": 81_920, "evaluate_every": 20_000}
AGENTS = ("uniform", "scripted", "agent")


def train_agent(folder: Path) -> dict[str, Any]:
    """Train the agent into ``folder/training``; returns the summary."""
    out = _emptied(folder / "training")
    config = RunConfig.model_validate({"train": TRAINING, "run": {"dir": str(out)}})
    return train(config, progress=True)


def demo(folder: Path) -> dict[str, Any]:
    """Fine-tune under every schedule; returns the summary of each by agent."""
    choices: dict[str, dict[str, Any]] = {
        "uniform": {"name": "uniform"},
        "scripted": {"name": "scripted", "options": _SCRIPT},
        "agent": {"name": str(folder / "training")},
    }
    summaries = {}
    for name in AGENTS:
        out = _emptied(folder / name)
        config = RunConfig.model_validate(
            {**SETTINGS, "agent": choices[name], "run": {"dir": str(out)}}
        )
        summaries[name] = finetune(config, progress=True)
    return summaries


def _emptied(folder: Path) -> Path:
    if folder.exists():
        storage.remove_folder(folder)
    return folder


def _outcome_table(summaries: dict[str, Any]) -> Any:
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
    """Run the demonstration, say where to look, and exit (1 if the agent did not change)."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    quiet_transformers()
    show("1. train a scheduling agent in the fast world (PPO, closed-form learning curves)")
    training = train_agent(folder)
    show(
        validation_table(training),
        "2. fine-tune the 0.1M preset on the embedded sources under three schedules",
    )
    summaries = demo(folder)
    show(
        _outcome_table(summaries),
        f"curves:  tensorboard --logdir {folder}",
        f"picture: {folder / 'agent' / PICTURE}",
        f"model:   {folder / 'agent' / MODEL} (load it with from_pretrained)",
    )
    if not training["parameters_changed"]:
        show("failed: training left the agent's parameters as they were")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
