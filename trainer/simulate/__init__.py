"""``mixgym simulate``: what packing does to a cluster, before it is rented."""
