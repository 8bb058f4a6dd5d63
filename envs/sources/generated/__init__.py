"""Sources of generated tasks: no file is needed."""
