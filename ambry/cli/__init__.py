"""The `ambry` command."""
