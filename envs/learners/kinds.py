"""The learners there are, and what each can do: whoever has to know asks here.

``envs.build`` has the function that makes the world of each. Nothing heavy is imported: options and
the command line read this table.
"""

from dataclasses import dataclass
from typing import Literal

from mixgym.envs.errors import ConfigError

LearnerName = Literal["causal_lm", "curves"]

CAUSAL_LM: LearnerName = "causal_lm"
CURVES: LearnerName = "curves"


@dataclass(frozen=True)
class LearnerKind:
    """What a learner can do.

    Attributes:
        name: in ``environment.learner``.
        has_rows: whether it trains on rows of sources; the others have none to read or to order.
        closed_form: whether losses are formulas: many worlds are one batch, tasks are drawn, what a
            source is worth is known exactly, and there is no model to save or copy.
    """

    name: LearnerName
    has_rows: bool
    closed_form: bool


LEARNERS: dict[LearnerName, LearnerKind] = {
    CAUSAL_LM: LearnerKind(CAUSAL_LM, has_rows=True, closed_form=False),
    CURVES: LearnerKind(CURVES, has_rows=False, closed_form=True),
}


def need_rows(name: LearnerName, what: str) -> None:
    """Refuse a learner without rows.

    Args:
        name: of the learner.
        what: there would be nothing to do so with, such as ``to order``.

    Raises:
        ConfigError: naming the learners that have rows.
    """
    if not LEARNERS[name].has_rows:
        known = " or ".join(kind.name for kind in LEARNERS.values() if kind.has_rows)
        raise ConfigError(f"environment.learner={name}: it has no rows {what}; use {known}")
