"""A library of short real runs under random mixtures, for worlds to be fitted to."""
