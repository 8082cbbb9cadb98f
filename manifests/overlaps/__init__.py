"""Scans that two collections share, a table for each collection that publishes no list of its sources."""
