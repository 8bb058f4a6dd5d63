"""Fast worlds fitted to recorded runs."""
