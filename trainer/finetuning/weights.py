"""``mixgym weights``: learn source weights on a subset, then fine-tune the base model by them.

ScaleBiO's pipeline (Pan et al., arXiv 2406.19976), in two runs: in the first, ``scalebio`` learns
the weights on a few rows of every source; the second starts from the base model and samples by the
weights that came out. The first run's model is thrown away.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.bilevel.weights import effective_sources
from mixgym.envs.learners.kinds import need_rows
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.finetuning.finetune import finetune, quiet_transformers
from mixgym.trainer.runs.folder import CONFIG
from mixgym.trainer.runs.tables import finetune_table, number, show, table

LEARN, TUNE, WEIGHTS = "learn", "finetune", "weights.json"


def weights_command(config: RunConfig, *, json_output: bool = False) -> dict[str, Any]:
    """Run both, and print the weights and the outcome unless JSON is wanted."""
    quiet_transformers()
    found = learn_and_tune(config)
    if not json_output:
        show(_weights_table(found), finetune_table(found["finetune"]))
    return found


def learn_and_tune(config: RunConfig) -> dict[str, Any]:
    """Learn weights and fine-tune by them; what an earlier call finished is kept.

    Args:
        config: of the fine-tuning run; ``weights`` and ``bilevel`` say how weights are learnt. Its
            agent is not used: ``scalebio`` learns, and ``fixed`` samples by what it learnt.

    Returns:
        ``weights``, ``learn`` and ``finetune`` (the summaries of the two runs). The folder of the
        configuration holds both run folders and ``weights.json``.

    Raises:
        ConfigError: for learner ``curves``, or if the folder holds runs of another configuration.
    """
    need_rows(config.environment.learner, "to learn weights on")
    root = Path(config.run.dir)
    learnt = _run(learning(config), root / LEARN)
    weights = _last_weights(root / LEARN)
    answer = {"weights": weights, "effective_sources": effective(weights)}
    root.mkdir(parents=True, exist_ok=True)
    storage.write_json(root / WEIGHTS, answer)
    print(f"weights: {root / WEIGHTS}", file=sys.stderr, flush=True)  # noqa: T201
    tuned = _run(tuning(config, weights), root / TUNE)
    return {**answer, "file": str(root / WEIGHTS), "learn": learnt, "finetune": tuned}


def learning(config: RunConfig) -> RunConfig:
    """The first run: ``scalebio`` on ``weights.rows`` rows of every source."""
    steps = config.weights.steps or config.training.steps
    return config.model_copy(
        update={
            "agent": AgentOptions(name="scalebio"),
            "bilevel": config.bilevel.model_copy(update={"rows": config.weights.rows}),
            "training": config.training.model_copy(
                update={"steps": steps, "tokens": None, "supervised_tokens": None}
            ),
        }
    )


def tuning(config: RunConfig, weights: dict[str, float]) -> RunConfig:
    """The second run: the base model, sampled by the weights."""
    agent = AgentOptions(name="fixed", options={"weights": weights})
    environment = config.environment.model_copy(update={"step_rule": "plain"})
    return config.model_copy(update={"agent": agent, "environment": environment})


def effective(weights: dict[str, float]) -> float:
    """How many sources the weights are spread over, exp(entropy)."""
    import numpy as np

    return effective_sources(np.array(list(weights.values())))


def _run(config: RunConfig, folder: Path) -> dict[str, Any]:
    placed = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(folder)})})
    return finetune(placed, resume=(folder / CONFIG).is_file(), progress=True)


def _last_weights(folder: Path) -> dict[str, float]:
    """The weights after the last update, by source; 0 for those that were not learnt on."""
    lines = (folder / "decisions.jsonl").read_text().splitlines()
    health = json.loads(lines[-1])["bilevel"]
    prefix = "weight/"
    return {n.removeprefix(prefix): v for n, v in health.items() if n.startswith(prefix)}


def _weights_table(found: dict[str, Any]) -> Any:
    """Weights beside the shares that were trained on."""
    shares = {name: row["share"] for name, row in found["learn"]["sources"].items()}
    rows = [
        [name, number(weight), number(shares.get(name))]
        for name, weight in found["weights"].items()
    ]
    made = table("learnt weights", ["source", "weight", "share while learning"], rows)
    made.caption = f"{found['effective_sources']:.1f} effective sources; {found['file']}"
    made.caption_justify = "left"
    return made
