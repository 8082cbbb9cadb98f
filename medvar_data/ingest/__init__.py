"""A download in, cases out; no voxel is read."""
