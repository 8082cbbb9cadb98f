"""The token cache: every slice's ids, made once and trained from."""
