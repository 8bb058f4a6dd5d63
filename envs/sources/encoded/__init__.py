"""Rows as tokens: in flat arrays, in selections of them, and on disk from one start to the next."""
