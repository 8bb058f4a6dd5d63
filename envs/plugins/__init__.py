"""What has a word: the tables of it, and the three ways in from outside the package."""
