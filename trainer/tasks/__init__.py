"""Real tasks: mixtures of a user's own sources, drawn by seed, to train and judge schedulers on."""
