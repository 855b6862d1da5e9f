"""One process (or part of one) that owns disks and answers the Datanode interface."""
