"""HBO: one actor over the sources, and one per source over its strata (Wang et al. 2025)."""
