"""The storage engine of one disk: synchronous, over a Disk and an Index. It knows records, not HTTP nor the cluster."""
