"""The options of `mixgym train`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mixgym.envs.curves.tasks.sets import Tasks, named_tasks
from mixgym.envs.options import Options

Split = Literal["train", "validation", "test"]


class TrainOptions(Options):
    """How a scheduling agent is trained (`mixgym train`)."""

    algo: str = Field(default="ppo", description="a trained algorithm (mixgym list algorithms)")
    level: Literal["joint", "global", "local", "alternate", "together"] = Field(
        default="joint",
        description="what learns: one agent for all; for sources; for strata; both, in turns or in "
        "one rollout",
    )
    period: int = Field(
        default=1, ge=1, description="decisions that one of the global level holds for"
    )
    turns: int = Field(default=8, ge=2, description="alternate: legs in which one level learns")
    team: float = Field(
        default=0.0, ge=0, le=1, description="share of the joint reward in a source's own pay"
    )
    other: str | None = Field(
        default=None,
        description="global, local: run folder of the agent at the level that does not learn; "
        "null: the prior",
    )
    stages: tuple[Literal["curves", "causal_lm"], ...] = Field(
        default=("curves",), min_length=1, description="worlds to train in, one after the other"
    )
    world: str | list[str] = Field(
        default="library",
        description="tasks of the fast world: library, around the worlds of the package that were "
        "fitted to recorded runs; prior, the wide prior alone; or files that `mixgym fit` wrote",
    )
    decisions: int = Field(default=200_000, ge=1, description="decisions in the fast world")
    language_decisions: int = Field(default=200, ge=1, description="decisions on a language model")
    environments: int = Field(default=64, ge=1, description="fast environments side by side")
    group: int = Field(
        default=8,
        ge=1,
        description="fast environments that meet the same episodes, each paid what it earns beyond "
        "the others (on-policy algorithms, levels joint and global); 1: each its own episodes",
    )
    evaluate_every: int = Field(default=20_000, ge=1, description="decisions between validations")
    language_evaluate_every: int = Field(
        default=100, ge=1, description="decisions on a language model between validations"
    )
    language_validations: int = Field(
        default=1,
        ge=0,
        description="fine-tuning runs that judge an agent on a language model, by the select "
        "split; 0: the fast world judges",
    )
    save_every: int = Field(
        default=20_000,
        ge=1,
        description="decisions between two checkpoints, at most those between two validations",
    )
    options: dict[str, Any] = Field(default={}, description="the algorithm's own options")
    policy: dict[str, Any] = Field(default={}, description="the policy's own options")
    local_algo: str | None = Field(
        default=None, description="alternate, together: of the local level; null: train.algo"
    )
    local_options: dict[str, Any] = Field(
        default={},
        description="alternate, together: options of the local level's algorithm, after "
        "train.options where it is the same algorithm",
    )
    local_policy: dict[str, Any] = Field(default={}, description="the same for its policy")

    def tasks(self, split: Split) -> Tasks:
        """The tasks of the fast world that agents are trained on, judged by, or reported on.

        Raises:
            ConfigError: for a file that holds no world.
        """
        if self.world == "prior":
            return named_tasks(split)
        files = [self.world] if isinstance(self.world, str) else self.world
        return named_tasks(f"world-{split}", [] if files == ["library"] else files)

    @model_validator(mode="after")
    def _levels_agree(self) -> "TrainOptions":
        both = self.level in ("alternate", "together")
        if self.other is not None and self.level not in ("global", "local"):
            raise ValueError(f"other is for the levels global and local, not {self.level}")
        if not both and (self.local_algo or self.local_options or self.local_policy):
            raise ValueError(f"local_... is for alternate and together, not {self.level}")
        if self.level == "joint" and self.period > 1:
            raise ValueError("period: at the level joint, both levels decide every time")
        return self
