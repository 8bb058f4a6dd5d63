"""Schedulers compared on equal terms: which runs there are, and what each has to tell."""
