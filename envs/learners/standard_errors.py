"""How far held-out losses can be trusted: standard errors from sums over rows.

The loss of a source (or cell) is a ratio, summed losses of its rows over their summed supervised
tokens. Its standard error is that of a ratio estimator under simple random sampling of rows
(Cochran, Sampling Techniques, 3rd ed. 1977, section 6.4):

    L = sum_r l_r / sum_r n_r,    se = sqrt(R / (R - 1) * sum_r (l_r - L n_r)^2) / sum_r n_r

Tokens of a row are not independent, rows are: so rows are counted. The squares are expanded into
sums that add up over batches and processes.
"""

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray

MOMENTS = 6
"""Rows, sums of l and n, and of l^2, l n and n^2."""


def row_moments(
    losses: FloatArray, rows: IntArray, cells: IntArray, shape: tuple[int, int]
) -> FloatArray:
    """float64[MOMENTS, K, G], sums over the rows of each cell.

    Args:
        losses: float64[n], NLL of every supervised token.
        rows: int64[n], which row each belongs to; a row is in one cell, and whole.
        cells: int64[n], flat (source, stratum) of each.
        shape: (K, G).
    """
    if not len(rows):
        return np.zeros((MOMENTS, *shape))
    tokens = np.bincount(rows).astype(np.float64)
    loss = np.bincount(rows, losses)
    cell = np.zeros(len(tokens), np.int64)
    cell[rows] = cells
    one = (tokens > 0).astype(np.float64)  # numbers that no token has are no rows
    terms = (one, loss, tokens, loss**2, loss * tokens, tokens**2)
    size = shape[0] * shape[1]
    return np.stack([np.bincount(cell, term, minlength=size).reshape(shape) for term in terms])


def standard_error(moments: FloatArray) -> FloatArray:
    """float64[...], of the loss per supervised token; NaN for fewer than two rows.

    Args:
        moments: float64[MOMENTS, ...], see :func:`row_moments`; those of a source are the sums
            over its strata.
    """
    rows, loss, tokens, loss_squares, products, token_squares = moments
    known = rows > 1
    mean = loss / np.where(known, tokens, 1.0)
    squares = loss_squares - 2.0 * mean * products + mean**2 * token_squares
    spread = np.maximum(squares, 0.0) * rows / np.where(known, rows - 1.0, 1.0)
    return np.where(known, np.sqrt(spread) / np.where(known, tokens, 1.0), np.nan)
