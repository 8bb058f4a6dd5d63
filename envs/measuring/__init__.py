"""What an environment measures and records: held-out losses, probes, the record of a decision."""
