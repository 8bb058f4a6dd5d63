"""What tells about runs and agents: dry run, doctor, comparison, placebo, profile."""
