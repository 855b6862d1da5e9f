"""The storage engine of one disk: synchronous, over a Disk and an Index. Knows records, not HTTP and not the cluster."""
