"""One TOML a public collection."""
