"""What it costs a source to be rare in what a model has been shown lately.

A model that is trained on other text learns that text's tokens, and gives away the probability of
those that it does not meet: the loss of a source that is left out rises, at times far above where
it began. If ``p_j`` are the token distributions of the sources and the model's own follows the
mixture ``w`` of what it was shown lately, the loss of source i has, beside its entropy, the
divergence KL(p_i || sum_j w_j p_j), and with distributions that overlap by a share ``kinship``

    rarity log(whole / met),
    met = shown_i + kinship sum of shown_j over the others + begun,   whole = sum of shown + begun

where a source is ``shown`` the intrinsic time that was spent on it, and all of it, with the weight
``begun`` of what the model was before training, fades at the rate ``fading``. The term is 0 before
training and for a source that is trained alone, rarity log(1 / share) for a strange one in a fixed
mixture, and grows without bound, linearly in time, for one that is dropped.
"""

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.spaces.mixture import last_sum


def exposed(
    task: CurveTask, shown: FloatArray, tokens: FloatArray, passed: FloatArray
) -> FloatArray:
    """float64[..., K], what of the intrinsic time spent on sources still counts after an interval.

    Args:
        task: the constants.
        shown: float64[..., K], before it.
        tokens: float64[..., K, G], supervised tokens trained on.
        passed: float64[...], intrinsic time of the interval.
    """
    if not task.exposes:
        return shown
    top = last_sum(tokens)
    share = top / np.maximum(last_sum(top), 1e-300)[..., None]
    faded = task.fading * passed
    kept = np.where(faded > 1e-9, -np.expm1(-faded) / np.maximum(faded, 1e-9), 1.0)
    return shown * np.exp(-faded)[..., None] + share * (passed * kept)[..., None]


def _met(task: CurveTask, shown: FloatArray, time: FloatArray) -> tuple[FloatArray, FloatArray]:
    """float64[..., K], what counts as the source itself, and float64[..., 1], all of it."""
    begun = (task.begun * np.exp(-task.fading * time))[..., None]
    whole = last_sum(shown)[..., None]
    kin = task.kinship[..., 0]
    return shown + kin * (whole - shown) + begun, whole + begun


def rarity_nll(task: CurveTask, shown: FloatArray, time: FloatArray) -> FloatArray:
    """float64[..., K, 1], nats that its rarity costs a source.

    Args:
        task: the constants.
        shown: float64[..., K], intrinsic time spent on sources that still counts.
        time: float64[...], intrinsic time.
    """
    met, whole = _met(task, shown, time)
    return task.rarity * np.log(whole / met)[..., None]


def rarity_slope(task: CurveTask, shown: FloatArray, time: FloatArray) -> FloatArray:
    """float64[..., K, K], fall of source i's loss by intrinsic time spent on source j."""
    met, whole = _met(task, shown, time)
    count = shown.shape[-1]
    own = np.eye(count)
    counted = own + (1.0 - own) * task.kinship
    return task.rarity * (counted / met[..., None] - 1.0 / whole[..., None])
