"""Run folders and their records: checkpoints, decisions, TensorBoard, tables."""
