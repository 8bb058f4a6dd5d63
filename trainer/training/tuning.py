"""``mixgym tune``: search the options of an algorithm in the fast world, with optuna.

A trial trains on the training tasks and is judged on the validation tasks; the test tasks are never
looked at. The space is the ``search`` part of the algorithm's preset. The study is a journal in the
run folder, so that the same command goes on where a killed one stopped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from mixgym.agents.algorithm_presets import Preset
from mixgym.agents.registry import training_of
from mixgym.envs import storage
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import CURVES
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.training.algorithms import (
    log_interval,
    make_algorithm,
    training_needs,
)
from mixgym.trainer.training.training_envs import FastTrainingEnv
from mixgym.trainer.training.validation import score

if TYPE_CHECKING:
    from optuna import Study, Trial

JOURNAL, BEST = "study.log", "best.yaml"
_SECTIONS = {"options": "train.options", "policy": "train.policy", "environment": "environment"}


def tune_command(
    config: RunConfig, *, trials: int, seeds: int = 1, json_output: bool = False
) -> dict[str, Any]:
    """Tune, and print the trials unless JSON is wanted."""
    answer = tune(config, trials=trials, seeds=seeds)
    if not json_output:
        show(
            _trial_table(answer),
            f"best: {answer['best_file']} (mixgym train {answer['best_file']})",
        )
    return answer


def tune(config: RunConfig, *, trials: int, seeds: int = 1) -> dict[str, Any]:
    """Search, up to a number of trials in all.

    Args:
        config: ``train.algo``, ``train.decisions`` of a trial, ``train.environments``, ``run.dir``.
            Options that it gives stay as they are.
        trials: in the study when it is done, those of earlier calls counted.
        seeds: trainings per trial, from ``config.seed`` on; their mean is what counts.

    Returns:
        ``trials``, best first, each with its values and ``validation`` (target-weighted mean NLL,
        nats per token); ``best_file``, a configuration that `mixgym train` takes.

    Raises:
        ConfigError: if optuna is not installed, the algorithm is unknown, or nothing is left to
            search.
    """
    optuna = _optuna()
    preset = training_of(config.train.algo)
    space = {name: what for name, what in preset.search.items() if not _given(config, name)}
    if not space:
        raise ConfigError(
            f"train.algo={config.train.algo}: nothing is left to search: every option of its "
            "space is given"
        )
    torch.set_num_threads(config.model.threads)
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    study = _open_study(optuna, folder, config)
    _check_study(study, config, seeds)
    if not study.trials:
        study.enqueue_trial({name: _default(preset, name) for name in space})
    left = trials - sum(trial.state.is_finished() for trial in study.trials)
    if left > 0:
        study.optimize(lambda trial: _judged(trial, config, space, seeds), n_trials=left)
    return _answer(study, config, folder, space)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "tuning needs optuna, which is not installed: pip install 'mixgym[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(optuna: Any, folder: Path, config: RunConfig) -> "Study":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    done = _done(folder)
    study: Study = optuna.create_study(
        study_name=config.train.algo,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        # another seed after each start: a continued search must not repeat its first draws
        sampler=optuna.samplers.TPESampler(seed=config.seed + done, n_startup_trials=6),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )
    return study


def _done(folder: Path) -> int:
    """Records in the journal, a number that grows with every trial."""
    journal = folder / JOURNAL
    return len(journal.read_text().splitlines()) if journal.is_file() else 0


def _check_study(study: "Study", config: RunConfig, seeds: int) -> None:
    """Refuse to mix trials that were judged differently.

    Raises:
        ConfigError: if the folder's trials had another budget.
    """
    budget = {"decisions": config.train.decisions, "seeds": seeds, "seed": config.seed}
    known = study.user_attrs.get("budget")
    if known not in (None, budget):
        raise ConfigError(
            f"run.dir={config.run.dir}: holds trials with {known}, not {budget}; take another "
            "folder, or the same budget"
        )
    study.set_user_attr("budget", budget)


def _judged(trial: "Trial", config: RunConfig, space: Mapping[str, Any], seeds: int) -> float:
    """The validation NLL of a trial, the mean over its seeds."""
    import optuna

    values = {name: _as_option(_suggested(trial, name, what), what) for name, what in space.items()}
    found = []
    for index in range(seeds):
        found.append(_trained(_with(config, values, config.seed + index)))
        trial.report(float(np.mean(found)), index)
        if index < seeds - 1 and trial.should_prune():
            raise optuna.TrialPruned
    return float(np.mean(found))


def _suggested(trial: "Trial", name: str, what: Any) -> Any:
    """A value from a list, or between ``low`` and ``high`` (``log``: even in its logarithm)."""
    if isinstance(what, list):
        return trial.suggest_categorical(name, what)
    if isinstance(what["low"], int):
        return trial.suggest_int(name, what["low"], what["high"], log=what.get("log", False))
    return trial.suggest_float(name, what["low"], what["high"], log=what.get("log", False))


def _trained(config: RunConfig) -> float:
    """Train once; the target-weighted mean NLL on the validation tasks, mean over tasks."""
    import tempfile

    from mixgym.agents.policies.export import ExportedPolicy, export_policy

    config = environment_for(training_needs(config), config, learner=CURVES)
    algorithm = make_algorithm(config, FastTrainingEnv(config).env)
    algorithm.learn(config.train.decisions, log_interval=log_interval(algorithm))
    with tempfile.TemporaryDirectory() as name:
        export_policy(algorithm.policy, Path(name), {})
        agent = ExportedPolicy(Path(name), shape=(MAX_SOURCES, MAX_STRATA))
        return float(
            score(agent.predict, config.environment, config.train.tasks("validation")).mean.mean()
        )


def _with(config: RunConfig, values: Mapping[str, Any], seed: int) -> RunConfig:
    """The configuration with the values of a trial."""
    parts: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, value in values.items():
        section, _, key = name.partition(".")
        parts[section][key] = value
    train = config.train.model_copy(
        update={
            "options": {**config.train.options, **parts["options"]},
            "policy": {**config.train.policy, **parts["policy"]},
        }
    )
    environment = config.environment.model_copy(update=parts["environment"])
    return config.model_copy(update={"train": train, "environment": environment, "seed": seed})


def _given(config: RunConfig, name: str) -> bool:
    section, _, key = name.partition(".")
    if section == "environment":
        return key in config.environment.model_fields_set
    return key in (config.train.options if section == "options" else config.train.policy)


def _default(preset: Preset, name: str) -> Any:
    """The preset's own value, which is the first trial."""
    section, _, key = name.partition(".")
    parts = {"options": preset.options, "policy": preset.policy_options}
    value = parts.get(section, preset.environment)[key]
    return value["start"] if isinstance(value, dict) else value


def _as_option(value: Any, what: Any) -> Any:
    """A value of a trial as the option that it stands for; ``fall``: it falls to that share."""
    if isinstance(what, dict) and "fall" in what:
        return {"start": value, "end": value * what["fall"]}
    return value


def _answer(
    study: "Study", config: RunConfig, folder: Path, space: Mapping[str, Any]
) -> dict[str, Any]:
    # a pruned trial has a value too, of fewer seeds
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    rows: list[dict[str, Any]] = [
        {"trial": trial.number, "validation": trial.value, "values": dict(trial.params)}
        for trial in sorted(complete, key=lambda trial: float(trial.value or 0.0))
    ]
    best: dict[str, Any] = {"train": {"algo": config.train.algo}}
    for name, value in rows[0]["values"].items():
        section, _, key = name.partition(".")
        into = best
        for part in _SECTIONS[section].split("."):
            into = into.setdefault(part, {})
        into[key] = _as_option(value, space[name])
    text = yaml.safe_dump(best, sort_keys=False)
    storage.write_text(folder / BEST, text)
    load_config(folder / BEST)  # what is written can be read
    return {"algorithm": config.train.algo, "trials": rows, "best_file": str(folder / BEST)}


def _trial_table(answer: Mapping[str, Any]) -> Any:
    names = list(answer["trials"][0]["values"])
    return table(
        f"{answer['algorithm']}: NLL on the validation tasks (nats per token)",
        ["trial", "validation", *names],
        [
            [
                str(row["trial"]),
                number(row["validation"], 4),
                *(_short(row["values"].get(name)) for name in names),
            ]
            for row in answer["trials"]
        ],
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
