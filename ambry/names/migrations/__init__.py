"""Versions of the tables, one file each, in order. Never edited after a release: a new version is a new file."""
