"""What the private workspace W holds."""
