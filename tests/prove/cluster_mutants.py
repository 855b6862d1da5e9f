"""R20 for a cluster: bugs planted in the code of quorums, joins, placement, reads over replicas and sweeping."""

from typing import Final

from tests.prove.mutant import Mutant

_QUORUM: Final = ("tests/cluster/test_quorum.py",)
_PLACEMENT: Final = ("tests/frontend/test_placement.py",)
_REPLICAS: Final = ("tests/frontend/test_replicas.py", "tests/frontend/test_hedged.py")
_HEALTH: Final = ("tests/frontend/test_health.py",)
_STATE: Final = ("tests/blob/test_state.py",)
_TOKENS: Final = ("tests/replication/test_convergence.py",)
_SWEEP: Final = ("tests/datanode/test_sweep_plan.py", "tests/datanode/test_sweeper.py")

CLUSTER_MUTANTS: Final = (
    Mutant(
        "a write is acknowledged by half of the replicas",
        "ambry/cluster/quorum.py",
        "    return counted // 2 + 1\n",
        "    return (counted + 1) // 2\n",
        _QUORUM,
    ),
    Mutant(
        "one witness too few proves that a blob is not there",
        "ambry/cluster/quorum.py",
        "    return counted - write_quorum(counted) + 1\n",
        "    return max(counted - write_quorum(counted), 1)\n",
        _QUORUM,
    ),
    Mutant(
        "a hole is no reason to doubt a not found",
        "ambry/cluster/quorum.py",
        "    if Reply.NOT_HERE not in replies and _all_deny(",
        "    if _all_deny(",
        _QUORUM,
    ),
    Mutant(
        "any datanode is a witness",
        "ambry/cluster/quorum.py",
        "        members = [reply for reply, one in zip(replies, groups, strict=True) if one == group]\n"
        "        if not members or",
        "        members = [reply for reply, one in zip(replies, groups, strict=True) if one or group]\n"
        "        if not members or",
        _QUORUM,
    ),
    Mutant(
        "one datacentre is enough when the origin has left",
        "ambry/cluster/quorum.py",
        "            return False\n    return bool(witnesses)\n",
        "            continue\n        return True\n    return False\n",
        _QUORUM,
    ),
    Mutant(
        "a rebuilt replica is a witness",
        "ambry/cluster/quorum.py",
        "            return Reply.FAILED if incarnation is not None and told not in {None, incarnation} "
        "else Reply.NOT_FOUND\n",
        "            return Reply.NOT_FOUND if told or incarnation else Reply.NOT_FOUND\n",
        _QUORUM,
    ),
    Mutant(
        "a survey is content with one voice",
        "ambry/cluster/quorum.py",
        "            known += members.count(Reply.PENDING)\n        return known >= witness_quorum(len(members))\n",
        "            known += members.count(Reply.PENDING)\n        return known >= 1\n",
        _QUORUM,
    ),
    Mutant(
        "a survey forgets what it heard before",
        "ambry/cluster/quorum.py",
        "        self.has_body |= has_body\n"
        "        self.joined = state if self.joined is None else join(self.joined, state)\n",
        "        self.has_body |= has_body\n        self.joined = state\n",
        _QUORUM,
    ),
    Mutant(
        "a change is done although replicas differ",
        "ambry/cluster/quorum.py",
        "is Reply.DONE and self._states[replica] == self.joined for replica in counts\n",
        "is Reply.DONE for replica in counts\n",
        _QUORUM,
    ),
    Mutant(
        "replicas that never saw the blob are not told of its end",
        "ambry/cluster/quorum.py",
        "                reply is Reply.NOT_FOUND\n                or reply is Reply.NOT_HERE\n",
        "                reply is Reply.NOT_HERE\n",
        (*_QUORUM, *_REPLICAS),
    ),
    Mutant(
        "bytes on one replica are enough for a blob that came back",
        "ambry/cluster/quorum.py",
        "        if with_body >= write_quorum(sum(self._counted)):\n            return []\n",
        "        if with_body >= 1:\n            return []\n",
        _QUORUM,
    ),
    Mutant(
        "joining replicas count for a write",
        "ambry/frontend/placement.py",
        "        counted = tuple(replica.state is ReplicaState.SERVING for replica, _ in writers)\n",
        "        counted = tuple(replica.state is not ReplicaState.LEAVING for replica, _ in writers)\n",
        _PLACEMENT,
    ),
    Mutant(
        "joining replicas are witnesses",
        "ambry/frontend/placement.py",
        "readers.append((rank, peer, where if serves else UNCOUNTED, replica.incarnation))",
        "readers.append((rank, peer, where, replica.incarnation))",
        _PLACEMENT,
    ),
    Mutant(
        "leaving replicas take puts",
        "ambry/frontend/placement.py",
        "if one[0].state is not ReplicaState.LEAVING]",
        "if one[0].state is not ReplicaState.JOINING]",
        _PLACEMENT,
    ),
    Mutant(
        "the wrong datacentre proves that a blob is not there",
        "ambry/frontend/placement.py",
        "        witnesses = (origin,) if origin in placed else tuple(sorted(placed))\n",
        "        witnesses = (self._datacentre,) if self._datacentre in placed else tuple(sorted(placed))\n",
        (*_PLACEMENT, *_REPLICAS),
    ),
    Mutant(
        "far replicas are asked before near ones",
        "ambry/frontend/placement.py",
        "            distance = 0 if where == self._datacentre else 1 if where == origin else 2\n",
        "            distance = 2 if where == self._datacentre else 1 if where == origin else 0\n",
        _PLACEMENT,
    ),
    Mutant(
        "a node out of reach does not count among those that must be met",
        "ambry/frontend/placement.py",
        "            placed.setdefault(where, []).append((replica, peer))\n",
        "            placed.setdefault(where, []).extend([(replica, peer)] if peer.datanode else [])\n",
        _PLACEMENT,
    ),
    Mutant(
        "the join takes the smaller life",
        "ambry/blob/state.py",
        "    return BlobState(max(left.life, right.life), max(left.expires_at_ms, right.expires_at_ms))\n",
        "    return BlobState(min(left.life, right.life), max(left.expires_at_ms, right.expires_at_ms))\n",
        _STATE,
    ),
    Mutant(
        "the join takes the later word instead of the longer life",
        "ambry/blob/state.py",
        "    return BlobState(max(left.life, right.life), max(left.expires_at_ms, right.expires_at_ms))\n",
        "    return BlobState(max(left.life, right.life), right.expires_at_ms)\n",
        _STATE,
    ),
    Mutant(
        "a delete of what came back changes nothing",
        "ambry/blob/state.py",
        "    return BlobState(state.life | 1, state.expires_at_ms)\n",
        "    return BlobState(max(state.life, 1), state.expires_at_ms)\n",
        _STATE,
    ),
    Mutant(
        "a slow replica is never overtaken",
        "ambry/frontend/hedged.py",
        "        if self._queue:\n            self._watch(peer.hedge_s(self._size))\n",
        "        if not self._queue:\n            self._watch(peer.hedge_s(self._size))\n",
        _REPLICAS,
    ),
    Mutant(
        "three replicas are asked at once",
        "ambry/frontend/hedged.py",
        "        if len(self._in_flight) >= READS_IN_FLIGHT_MAX:\n",
        "        if len(self._in_flight) > READS_IN_FLIGHT_MAX:\n",
        _REPLICAS,
    ),
    Mutant(
        "a suspect peer never gets a probe",
        "ambry/frontend/health.py",
        "        assert self._probe_at is not None\n        return now < self._probe_at\n",
        "        assert self._probe_at is not None\n        return True\n",
        _HEALTH,
    ),
    Mutant(
        "an idle peer becomes suspect",
        "ambry/frontend/health.py",
        "        return self._asked_at > self._heard_at and now - self._asked_at > PEER_QUIET_MS / 1000\n",
        "        return now - self._asked_at > PEER_QUIET_MS / 1000\n",
        _HEALTH,
    ),
    Mutant(
        "a put that a tombstone kept out is acknowledged",
        "ambry/frontend/replicas.py",
        "        return Reply.DONE if answer.has_body else Reply.FAILED\n",
        "        return Reply.DONE\n",
        _REPLICAS,
    ),
    Mutant(
        "a synced-remote put does not wait for the other datacentre",
        "ambry/frontend/replicas.py",
        "            if verdict is Verdict.DONE and self._remote is Reply.DONE:\n",
        "            if verdict is Verdict.DONE and self._remote is not Reply.FAILED:\n",
        _REPLICAS,
    ),
    Mutant(
        "that a blob is not here yet proves that it is nowhere",
        "ambry/frontend/replicas.py",
        "    if verdict is Verdict.NOT_FOUND and not route.is_origin_here:\n",
        "    if verdict is Verdict.NOT_FOUND and route.is_origin_here and not route.readers:\n",
        _REPLICAS,
    ),
    Mutant(
        "a quorum read believes the replica that gives the bytes",
        "ambry/frontend/get.py",
        "        check_state(known, now_ms, option)\n",
        "",
        _REPLICAS,
    ),
    Mutant(
        "a failed attempt is not tombstoned",
        "ambry/frontend/put.py",
        "            if not isinstance(error, REFUSALS):\n"
        "                self._means.reclaimer.add([self._blob_id], self._expires_at_ms)\n",
        "",
        _REPLICAS,
    ),
    Mutant(
        "a token passes a change that is not settled",
        "ambry/replication/session.py",
        "            return Token(self.position.incarnation, first.entry.lsn - 1)\n",
        "            return Token(self.position.incarnation, first.entry.lsn)\n",
        _TOKENS,
    ),
    Mutant(
        "a token of a former life counts in the next one",
        "ambry/replication/session.py",
        "        self.position = Token(incarnation, 0)\n",
        "        self.position = Token(incarnation, self.position.lsn)\n",
        _TOKENS,
    ),
    Mutant(
        "the sweeper takes chunks whose manifest may be alive",
        "ambry/datanode/sweep_plan.py",
        "    if Word.UNKNOWN in words:\n        return Fate.KEEP\n",
        "",
        _SWEEP,
    ),
    Mutant(
        "the sweeper does not wait for the retention of a delete",
        "ambry/datanode/sweep_plan.py",
        "    return Fate.DEAD if now_ms >= max(deaths) + retention_ms + SWEEP_MARGIN_MS else Fate.KEEP\n",
        "    return Fate.DEAD if now_ms >= max(deaths) + SWEEP_MARGIN_MS else Fate.KEEP\n",
        _SWEEP,
    ),
    Mutant(
        "the sweeper forgets its alarm",
        "ambry/datanode/sweeper.py",
        "            going.absent.clear()\n",
        "            pass\n",
        _SWEEP,
    ),
)
