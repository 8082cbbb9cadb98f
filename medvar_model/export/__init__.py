"""Trained models as folders that explain themselves: to publish, to pass on, to compare."""
