"""What many environments side by side have beyond one: probes, records, bilevel weights."""
