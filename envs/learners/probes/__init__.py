"""What is measured on a causal LM: losses, gradients and difficulty of rows."""
