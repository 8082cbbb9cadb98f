"""The whole data side on synthetic scans."""
