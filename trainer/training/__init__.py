"""Training of scheduling agents."""
