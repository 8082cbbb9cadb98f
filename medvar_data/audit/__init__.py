"""A shard set explained and proved."""
