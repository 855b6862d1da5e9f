"""Deterministic simulation: two datacentres of three datanodes, frontends and clients under one seed, in virtual time.

The engine, the frontend's operations and replication are the real ones; disks, indexes, clocks, network and chance
are not. `python -m tests.sim --seeds 1-100` runs seeds, and a seed always does the same.
"""
