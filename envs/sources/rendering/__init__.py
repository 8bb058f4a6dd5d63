"""Rows as text: the plain template, the tokenizer's own, and the tokens that texts begin with."""
