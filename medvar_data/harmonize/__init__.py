"""A case in, 8-bit square slices out. MedVAR section 3.2."""
