"""A checkpoint in, images out."""
