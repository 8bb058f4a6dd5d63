"""Where the tasks of the fast world come from: drawn from seeds, or around fitted worlds."""
