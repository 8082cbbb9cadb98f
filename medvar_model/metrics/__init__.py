"""Measures of generated and reconstructed images."""
