"""Weights on disk: our checkpoints, VAR's official files."""
