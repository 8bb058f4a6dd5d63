"""Published online mixers as rules: one word each, the same face, memory in the state."""
