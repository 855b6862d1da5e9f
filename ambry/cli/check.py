"""`ambry datanode check`: look at the disk of a datanode that is stopped; rebuild its index from the logs."""
