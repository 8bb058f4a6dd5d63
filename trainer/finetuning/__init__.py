"""Fine-tuning runs: an agent in a run, from configuration to a Hugging Face model."""
