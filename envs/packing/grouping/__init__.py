"""Groups of lengths, which of them suit a machine, and whether they pay."""
