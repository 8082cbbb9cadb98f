"""One TOML a template of users' own data."""
