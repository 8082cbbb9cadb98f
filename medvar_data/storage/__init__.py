"""Bytes in and out: files, tars, Parquet, picture codecs, HTML."""
