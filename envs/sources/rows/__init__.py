"""Rows as they stand in files: their columns, their turns, and what these say."""
