"""The hierarchical, equivariant policy and its faces for Stable-Baselines3."""
