"""One TOML a harmonization recipe."""
