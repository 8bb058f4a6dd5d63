"""``mixgym compare``: schedulers on equal terms, paired by seed.

At a seed all agents start from the same weights, meet the same splits and the same order of rows
within each source, and get the same budget of supervised tokens. Every run keeps its folder; the
CSV holds a row per run.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.finetuning.finetune import finetune, quiet_transformers
from mixgym.trainer.reports.dry_run import make_plan
from mixgym.trainer.reports.leaderboard import leaderboard, leaderboard_table
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.tables import show


def compare_command(
    config: RunConfig, *, agents: Sequence[str], seeds: int, json_output: bool = False
) -> dict[str, Any]:
    """Compare, and print the leaderboard unless JSON is wanted."""
    quiet_transformers()
    report = compare(config, agents=agents, seeds=seeds, progress=True)
    if not json_output:
        show(leaderboard_table(report), f"every run: {report['csv']}")
    return report


def compare(
    config: RunConfig, *, agents: Sequence[str], seeds: int, progress: bool = False
) -> dict[str, Any]:
    """Run every agent at every seed; finished runs in the folder are not run again.

    Args:
        config: of each run; ``run.dir`` holds them all. A budget in supervised tokens is set from
            the steps under the first agent if the configuration has none.
        agents: names of algorithms or folders of training runs; the first is the reference.
        seeds: how many, counted from ``config.seed``.
        progress: show bars.

    Returns:
        ``rows`` (a dict per run), ``leaderboard`` (a dict per agent) and ``csv``, the path.

    Raises:
        ConfigError: for fewer than two agents, agents named twice, or no seeds.
    """
    labels = _labels(agents)
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least one (three show a spread)")
    for agent in agents:
        find_agent(_agent(config, agent))  # a mistake shows before anything is trained
    folder = Path(config.run.dir)
    config = _with_token_budget(config, agents[0])
    rows = []
    for seed in range(config.seed, config.seed + seeds):
        for label, agent in labels.items():
            out = folder / label / f"seed-{seed}"
            rows.append(_row(label, seed, _run(config, agent, seed, out, progress)))
    board = leaderboard(rows, list(labels))
    _write_csv(folder / "runs.csv", rows)
    report = {
        "budget_supervised_tokens": config.training.supervised_tokens,
        "rows": rows,
        "leaderboard": board,
        "csv": str(folder / "runs.csv"),
    }
    storage.write_json(folder / "compare.json", report)
    return report


def _labels(agents: Sequence[str]) -> dict[str, str]:
    """Short name of a run folder or algorithm -> the agent as it was given."""
    labels: dict[str, str] = {}
    for agent in agents:
        label = Path(agent).name
        if label in labels:
            raise ConfigError(f"--agents: two are called {label!r}: rename one of the folders")
        labels[label] = agent
    if len(labels) < 2:
        raise ConfigError(
            "--agents: give at least two, separated by commas; the first is compared with"
        )
    return labels


def _with_token_budget(config: RunConfig, agent: str) -> RunConfig:
    if config.training.supervised_tokens is not None:
        return config
    own = config.model_copy(update={"agent": _agent(config, agent)})
    tokens = int(make_plan(own)["run"]["supervised_tokens"])
    training = config.training.model_copy(update={"supervised_tokens": tokens})
    return config.model_copy(update={"training": training})


def _agent(config: RunConfig, agent: str) -> AgentOptions:
    """Options of the configuration go to the agent that they were written for."""
    same = agent == config.agent.name
    return config.agent if same else AgentOptions(name=agent)


def _run(config: RunConfig, agent: str, seed: int, out: Path, progress: bool) -> dict[str, Any]:
    run = config.run.model_copy(update={"dir": str(out)})
    model = config.model.model_copy(update={"init_seed": config.model.init_seed + seed})
    own = config.model_copy(
        update={"seed": seed, "run": run, "model": model, "agent": _agent(config, agent)}
    )
    resume = (out / "config.yaml").is_file()
    try:
        return finetune(own, resume=resume, progress=progress)
    except DivergenceError as error:
        return _diverged(out, str(error))


def _diverged(out: Path, reason: str) -> dict[str, Any]:
    """What a diverged run has to tell: how far it came. It has no test loss."""
    records = RunFolder.open(out).read_decisions()
    last: dict[str, Any] = records[-1] if records else {}
    return {
        "status": "diverged",
        "failure": reason,
        "steps": last.get("steps", 0),
        "supervised_tokens": last.get("supervised_tokens", 0),
        "cost": last.get("cost", {"train_tokens": 0}),
        "test": {"mean_after": None, "worst_after": None},
        "sources": {},
    }


def _row(label: str, seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    sources = summary["sources"]
    measured = [row["test_after"] for row in sources.values() if row["test_after"] is not None]
    cost = summary["cost"]
    return {
        "agent": label,
        "seed": seed,
        "status": summary["status"],
        "steps": summary["steps"],
        "tokens": cost["train_tokens"],
        "measure_tokens": cost.get("measure_tokens", 0),
        "probe_tokens": cost.get("probe_tokens", 0),
        "supervised_tokens": summary["supervised_tokens"],
        "mean": float(np.mean(measured)) if measured else None,
        "target_mean": summary["test"]["mean_after"],
        "worst": summary["test"]["worst_after"],
        **{f"nll/{name}": row["test_after"] for name, row in sources.items()},
        **{f"exact/{name}": value for name, value in (summary.get("exact") or {}).items()},
    }


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    storage.write_text(path, text.getvalue())
