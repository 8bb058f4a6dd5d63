"""Model folders: opened, checked for merging, written whole or not at all."""
