"""What packs cost: the cost model, stated machines, rates fitted to a profile, metrics."""
