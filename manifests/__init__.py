"""The TOML files that describe collections, recipes and conditions; no code."""
