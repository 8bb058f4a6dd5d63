"""Property tests draw the same examples on every run: a failure is never a matter of luck."""

from hypothesis import settings

settings.register_profile("mixgym", derandomize=True, deadline=None, database=None)
settings.load_profile("mixgym")
