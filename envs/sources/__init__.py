"""Sources: rows, splits, token sequences, difficulty strata and the sampler that draws them."""
