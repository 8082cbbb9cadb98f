"""A shard set in, a run folder with checkpoints out."""
