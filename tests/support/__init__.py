"""Makers of test data: phantoms at published paths, DICOM files, archives, shard sets, damage."""
