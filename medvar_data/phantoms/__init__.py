"""Scans synthesised by code: recognisable anatomy with known truth, in the published layouts."""
