"""Replicas that pull from each other. Empty until partitions have more than one replica."""
