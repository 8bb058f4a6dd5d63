"""ScaleBiO as an agent: the prior, at every decision; the bilevel step rule learns the weights."""

from mixgym.agents.actor import State
from mixgym.agents.rule import Rule, Signals
from mixgym.envs.arrays import FloatArray


class ScaleBio(Rule):
    """Asks for the prior, so that what is sampled is softmax(log prior + lambda).

    Lambda is the step rule's (:class:`~mixgym.envs.bilevel.rule.BilevelStep`), which this agent's
    needs switch on. Any other agent may act on top of it: ``environment.step_rule=bilevel``.
    """

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        return signals.sources["prior"], None
