"""Workspace in, shard set out."""
