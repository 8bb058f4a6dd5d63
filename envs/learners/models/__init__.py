"""Models and how they compute: loading, small presets, precision, attention over packs."""
