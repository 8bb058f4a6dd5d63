"""Sets of options: the paper's text, its released code, ours, and the baseline without an actor."""

from math import inf
from typing import Any

_PAPER: dict[str, Any] = {
    "update_at_start": True,
    "global": {
        "actor": "mlp",
        "features": "identity",
        "reward": "gradient_norm",
        "update": "enumerated",
        "optimizer": "sgd",
        "learning_rate": 1e-4,
    },
    "local": {
        "actor": "mlp",
        "features": "identity",
        "reward": "perplexity_ratio",
        "update": "enumerated",
        "optimizer": "sgd",
        "learning_rate": 1e-4,
    },
}
"""The text: two-layer perceptrons, one plain ascent step of 1e-4 per update, raw rewards, an update
at step 0. The periods are the text's with ``training.interval: 200``.

Such a step moves a logit by about 1e-4, so that in a run's twenty to fifty updates the mixture
stays where it was: the curves that the paper shows need a faster actor.
"""

_RELEASED: dict[str, Any] = {
    "global": {
        "actor": "table",
        "reward": "gradient_norm_examples",
        "update": "enumerated",
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "inner_steps": 200,
        "keep_state": True,
        "warm_start": "mse_fit",
    },
    "local": {
        "actor": "table",
        "reward": "perplexity_ratio",
        "normalize": "mean",
        "update": "enumerated",
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "inner_steps": 200,
        "keep_state": True,
        "tau": inf,
    },
}
"""The released code: logit tables, 200 steps of Adam per update with a state that is kept, local
rewards over their mean, a warm start by regression, no update at step 0.

Its defects are not inherited: local updates repeated at every micro-step, a probe's gradient left
over for the next step, actors that drift apart between ranks, the hardest rows dropped.
"""

_CLOSED_FORM: dict[str, Any] = {
    "global": {"reward": "gradient_norm", "update": "closed_form", "learning_rate": 1.0},
    "local": {"reward": "perplexity_ratio", "update": "closed_form", "learning_rate": 1.0},
}
"""p = R / sum R at both levels, with the paper's rewards: where its actors would come to rest."""

_RECOMMENDED: dict[str, Any] = {
    "global": {
        "reward": "gradient_norm_last",
        "by_target": True,
        "update": "closed_form",
        "learning_rate": 0.2,
        "power": 1.5,
        "patience": 3.0,
        "tau": inf,
        "floor": 0.05,
        "trust_region": 0.5,
    },
    "local": {
        "reward": "progress",
        "update": "closed_form",
        "learning_rate": 0.2,
        "times_prior": True,
        "floor": 0.05,
        "trust_region": 0.5,
    },
}
"""Ours.

- A cheap global reward: the gradient of the last block, times the target. A norm is as large for
  noise as for what can be learnt; the target says which of them matters. ``gradient_alignment``,
  which needs no such word, does a little better in the fast world (0.004 nats, and 0.03 on the
  worst source) for six times the tokens.
- A free local reward: what each stratum's held-out loss fell since the last update. A perplexity
  ratio samples most what cannot improve. Strata move around their natural shares: with equal
  rewards nothing is preferred.
- Logits that track log rewards by a fifth at each update, instead of steps of fixed size, which
  turn noise into equally large moves. Faster tracking of higher powers does better where probes
  are as good as in the fast world; in language models it follows their noise.
- Rewards that fade with passes over the same rows (the worth of a repeated token decays), a uniform
  start, and guards: a floor of the prior, and a trust region of half a nat.

Chosen on the validation tasks of the fast world.
"""

PRESETS = {
    "recommended": _RECOMMENDED,
    "released": _RELEASED,
    "paper": _PAPER,
    "closed_form": _CLOSED_FORM,
}
