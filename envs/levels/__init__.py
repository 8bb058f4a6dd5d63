"""The two levels of a mixture as environments of their own, single and batched."""
