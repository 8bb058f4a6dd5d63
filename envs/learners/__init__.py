"""Learners: what is trained inside the environment."""
