"""Workspace in, shard set out (`run`); shard set in, another one out (`reshard`)."""
