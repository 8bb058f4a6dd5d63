"""The command line ``mixgym``."""
