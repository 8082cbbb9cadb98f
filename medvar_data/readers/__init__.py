"""Files in, voxels in physical units with their geometry out."""
