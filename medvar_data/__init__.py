"""Turn published CT/MR collections into harmonized, auditable training shards (no torch needed)."""
