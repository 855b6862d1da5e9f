"""R20 for a cluster: bugs planted in the code of quorums, joins, placement, reads over replicas and sweeping."""

from typing import Final

from tests.prove.mutant import Mutant

_QUORUM: Final = ("tests/cluster/test_quorum.py",)
_PLACEMENT: Final = ("tests/frontend/test_placement.py",)
_REPLICAS: Final = ("tests/frontend/test_replicas.py", "tests/frontend/test_hedged.py")
_HEALTH: Final = ("tests/frontend/test_health.py",)
_STATE: Final = ("tests/blob/test_state.py",)
_TOKENS: Final = ("tests/replication/test_convergence.py",)
_JOINING: Final = ("tests/datanode/test_joining.py",)
_SESSION: Final = ("tests/replication/test_session.py",)
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
        "            known += members.count(Reply.PENDING)\n"
        "        return known >= witness_quorum(self._listed.get(group, len(members)))\n",
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
        "            reply is Reply.DONE and state == self.joined for reply, state in zip",
        "            reply is Reply.DONE or state is self for reply, state in zip",
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
        "        if with_body >= write_quorum(len(self._serve)):\n            return []\n",
        "        if with_body >= 1:\n            return []\n",
        _QUORUM,
    ),
    Mutant(
        "joining replicas are taken for ones that know what was before",
        "ambry/frontend/placement.py",
        "        serve = tuple(replica.state is ReplicaState.SERVING for replica, _ in writers)\n",
        "        serve = tuple(replica.state is not ReplicaState.LEAVING for replica, _ in writers)\n",
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
    Mutant(
        "one denial is a proof when a replica has lost its disk and joins",
        "ambry/cluster/quorum.py",
        "members.count(Reply.NOT_FOUND) < witness_quorum(listed.get(group, len(members))):",
        "members.count(Reply.NOT_FOUND) < witness_quorum(len(members)):",
        _QUORUM,
    ),
    Mutant(
        "a change is done without those who know what was before",
        "ambry/cluster/quorum.py",
        "        if quorum.met_by(holders) and serving_reached >= serving_required:\n",
        "        if quorum.met_by(holders):\n",
        _QUORUM,
    ),
    Mutant(
        "a change is done without a quorum that counts joining replicas",
        "ambry/cluster/quorum.py",
        "        if quorum.met_by(holders) and serving_reached >= serving_required:\n",
        "        if serving_reached >= serving_required:\n",
        _QUORUM,
    ),
    Mutant(
        "the map's count of replicas leaves out those that join and leave",
        "ambry/frontend/placement.py",
        "            listed={where: len(members) for where, members in placed.items()},\n",
        "            listed={},\n",
        _PLACEMENT,
    ),
    Mutant(
        "a blob whose bytes nobody may have is brought back",
        "ambry/frontend/update.py",
        "    if bytes_are_here is None:\n        await _find_bytes(placement, blob_id)\n",
        "",
        _REPLICAS,
    ),
    Mutant(
        "a datanode takes changes under an old map",
        "ambry/datanode/fence.py",
        "        if sent is not None and sent < membership:\n",
        "        if sent is not None and sent < 0:\n",
        _JOINING,
    ),
    Mutant(
        "the fence lets everything of a newer map's sender pass by one version",
        "ambry/datanode/fence.py",
        "        if sent is not None and sent < membership:\n",
        "        if sent is not None and sent < membership - 1:\n",
        _JOINING,
    ),
    Mutant(
        "a datanode answers for a partition that the map does not list there",
        "ambry/datanode/fence.py",
        '            return NoSuchReplica("the map lists no replica of this partition here", partition=partition)\n',
        "            return None\n",
        _JOINING,
    ),
    Mutant(
        "a sender with an old map is told that a blob is not there",
        "ambry/datanode/fence.py",
        "        if isinstance(outcome, BlobNotFound) and isinstance(request, GetRequest):\n",
        "        if isinstance(outcome, BlobNotFound) and isinstance(request, PutRequest):\n",
        _JOINING,
    ),
    Mutant(
        "a put counts a new replica as those do who know of it, and not as the others do",
        "ambry/cluster/quorum.py",
        "        return cls(required, elders, older)\n",
        "        return cls(required)\n",
        _QUORUM,
    ),
    Mutant(
        "a put forgets the replica that leaves",
        "ambry/cluster/quorum.py",
        "min(write_quorum(len(elders) + leaving), len(elders))",
        "min(write_quorum(len(elders)), len(elders))",
        _QUORUM,
    ),
    Mutant(
        "changes in a batch pass the fence",
        "ambry/datanode/fence.py",
        "                if isinstance(found, StaleMap):\n                    return found\n",
        "                if isinstance(found, StaleMap):\n                    continue\n",
        _JOINING,
    ),
    Mutant(
        "a sender with a newer map is not a reason to look for it",
        "ambry/datanode/fence.py",
        "        if sent > self.version:\n",
        "        if sent > self.version + 1_000_000:\n",
        _JOINING,
    ),
    Mutant(
        "LSNs are read before every peer uses the map with the replica that joins",
        "ambry/datanode/joining.py",
        "        if self._is_local(cluster_map, node) and not all("
        "confirmed.get(peer, 0) >= membership for peer in flat):\n"
        "            return []\n",
        "",
        _JOINING,
    ),
    Mutant(
        "what is to be caught up with outlives a change of the replicas",
        "ambry/datanode/joining.py",
        "            self._membership = membership\n            self._marks = {}\n",
        "            self._membership = membership\n",
        _JOINING,
    ),
    Mutant(
        "a replica serves when it has caught up with one peer",
        "ambry/datanode/joining.py",
        "        if any(peer not in self._marks for peer in wanted):\n            return None\n"
        "        return {peer: self._marks[peer] for peer in wanted}\n",
        "        return {peer: self._marks[peer] for peer in wanted if peer in self._marks} or None\n",
        _JOINING,
    ),
    Mutant(
        "the other datacentre is not asked when nobody serves here",
        "ambry/datanode/joining.py",
        "        return [group for group in others if group]\n",
        "        return []\n",
        _JOINING,
    ),
    Mutant(
        "a page behind one that was lost is taken",
        "ambry/replication/session.py",
        "        if page.after_lsn > self.position.lsn:\n            return NO_WORK",
        "        if page.after_lsn > self.position.lsn + (1 << 63):\n            return NO_WORK",
        _SESSION,
    ),
    Mutant(
        "a page from the middle of another life is taken",
        "ambry/replication/session.py",
        "            if page.after_lsn:\n                return NO_WORK",
        "            if page.after_lsn < 0:\n                return NO_WORK",
        _SESSION,
    ),
    Mutant(
        "a reader of a feed ends when its poll is given up",
        "ambry/replication/puller.py",
        "            if task is not None and task.cancelling() > cancels:\n",
        "            if task is not None and task.cancelling():\n",
        ("tests/replication/test_puller.py",),
    ),
    Mutant(
        "a poll that was given up moves the subscription",
        "ambry/datanode/feed.py",
        "        if subscription.turn != turn:\n",
        "        if subscription.turn < turn:\n",
        ("tests/datanode/test_feed.py",),
    ),
    Mutant(
        "a datanode that began without replicas does not hear of its commits",
        "ambry/datanode/feed.py",
        "        self._listen()\n        self._look_timer = None\n",
        "        self._look_timer = None\n",
        ("tests/datanode/test_feed.py",),
    ),
)
