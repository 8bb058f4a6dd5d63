"""What goes in and out of an environment: mixtures, actions, observations, signals, pictures."""
