"""Find the cases that show one scan although no byte of them is the same (`search`): candidates by index, proof on voxels."""
