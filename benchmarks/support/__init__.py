"""What benchmarks share, and the workers that they start."""
