"""Several processes: shares of a step, and packs that ranks share."""
