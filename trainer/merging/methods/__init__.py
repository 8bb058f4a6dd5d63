"""The arithmetic of merging: methods, their parameters, statistics."""
