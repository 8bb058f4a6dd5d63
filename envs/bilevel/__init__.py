"""Bilevel source weights: learnt while the model trains, from what helps a validation set."""
