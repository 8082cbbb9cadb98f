"""What lies on the disk: trees of files, archives, data files beside their headers."""
