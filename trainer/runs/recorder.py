"""Callbacks of a run: records every decision, saves checkpoints, shows progress."""

import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from mixgym.envs import storage
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import DivergenceError
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.tensorboard import RunWriter, scalars_of

ENVIRONMENT, AGENT = "environment", "agent.json"
SECONDS = ("plan_seconds", "train_seconds", "measure_seconds", "decision_seconds", "cpu_seconds")


class Recorder(BaseCallback):
    """Writes what each decision did, and ends the run with its episode.

    Args:
        run: the run's folder.
        env: the environment, for what is not in ``info`` (measured seconds) and for checkpoints.
        writer: of TensorBoard records, or None.

    Raises:
        DivergenceError: when training diverged, naming step and shares.
    """

    def __init__(self, run: RunFolder, env: MixtureEnv, writer: RunWriter | None) -> None:
        super().__init__()
        self._run = run
        self._env = env
        self._writer = writer
        self._clock = (time.perf_counter(), time.process_time())

    def _on_training_start(self) -> None:
        self._clock = (time.perf_counter(), time.process_time())

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]
        if "failure" in info:
            raise DivergenceError(info["failure"])
        record = {**info["decision"], "time": self._time(info["decision"])}
        self._run.append_decision(record)
        if self._writer is not None:
            self._writer.write(record["decision"], record["supervised_tokens"], scalars_of(record))
        if self.locals["dones"][0]:
            return False
        options = self._run.config.run
        if options.keep_last and record["decision"] % options.save_every == 0:
            self._run.save_checkpoint(record["decision"], self._save)
        self._clock = (time.perf_counter(), time.process_time())
        return True

    def _time(self, record: dict[str, Any]) -> dict[str, float]:
        """Seconds of this decision; the only part of a record that differs between equal runs."""
        wall, cpu = (time.perf_counter() - self._clock[0], time.process_time() - self._clock[1])
        supervised = sum(self._env.last_supervised)
        return {
            **self._env.seconds,
            "decision_seconds": wall,
            "cpu_seconds": cpu,
            "supervised_tokens_per_cpu_second": supervised / max(cpu, 1e-9),
            "tokens_per_second": self._env.last_tokens / max(wall, 1e-9),
        }

    def _save(self, folder: Path) -> None:
        if self._writer is not None:
            self._writer.flush()
        self._env.save(folder / ENVIRONMENT)
        storage.write_json(folder / AGENT, {"memory": self.model.memory()})  # type: ignore[attr-defined]


class Follower(BaseCallback):
    """Ends the run of a rank that records nothing with its episode.

    Raises:
        DivergenceError: when training diverged, as on the rank that records.
    """

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]
        if "failure" in info:
            raise DivergenceError(info["failure"])
        return not self.locals["dones"][0]


class ProgressBar(BaseCallback):
    """A bar on the terminal: steps, tokens per second, loss, mixture.

    Args:
        env: gives the budget and the names.
        disable: show nothing.
    """

    def __init__(self, env: MixtureEnv, *, disable: bool) -> None:
        super().__init__()
        self._env = env
        self._disable = disable
        self._bar: Any = None

    def _on_training_start(self) -> None:
        training = self._env.training
        self._bar = tqdm(
            total=training.budget,
            initial=self._env.progress.used(training.budget_unit),
            unit="step" if training.budget_unit == "steps" else "tok",
            disable=self._disable,
            dynamic_ncols=True,
            leave=True,
        )

    def _on_step(self) -> bool:
        record = self.locals["infos"][0].get("decision")
        if record is None:
            return True
        weights = sorted(record["mixture"].items(), key=lambda item: -item[1])
        shown = " ".join(f"{name} {100 * weight:.0f}%" for name, weight in weights[:6])
        rate = self._env.last_tokens / max(sum(self._env.seconds.values()), 1e-9)
        self._bar.set_postfix_str(
            f"loss {record['loss']['train_mean']:.3f} held-out {record['loss']['reward_mean']:.3f} "
            f"{rate:.0f} tok/s | {shown}",
            refresh=False,
        )
        used = {**record, "tokens": record["cost"]["train_tokens"]}
        self._bar.update(used[self._env.training.budget_unit] - self._bar.n)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()

    def close(self) -> None:
        """Leave the terminal in order after an error."""
        if self._bar is not None:
            self._bar.close()
