"""A shard set and a checkpoint in, scores, pictures and a page out."""
