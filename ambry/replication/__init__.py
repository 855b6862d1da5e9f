"""Replication: what a datanode does so that its replicas have what the replicas of other datanodes have.

`session.py` decides what a page of a peer's feed asks for, `plan.py` who reads from whom, `pace.py` how fast: plain
synchronous code. `fetcher.py`, `puller.py`, `repairer.py` and `comparer.py` wait for peers and disks; `replicator.py`
puts them together for one datanode.
"""
