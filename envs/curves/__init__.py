"""The fast world: closed-form learning curves, batched, for training agents in seconds."""
