"""Fair shares of one process: requests under way by container, and what a container may do in a second.

As long as a process has little to do, a container may have as much of it as it likes. Beyond REQUESTS_UNDER_WAY_FAIR
requests each container has an equal share, and a request beyond the share of its container is refused: so a container
that asks for everything cannot keep another one from being served. Rates are token buckets that hold one second's
worth. A request takes its place before it runs; bytes are counted when they are known, and a container that has run
into debt waits until it is paid off. All figures are this process's own. Pure: the time is an argument.
"""

from dataclasses import dataclass
from typing import Final

from ambry.access.accounts import Container, QuotaMode
from ambry.errors import Overloaded, QuotaExceeded
from ambry.limits import REQUESTS_UNDER_WAY_FAIR, RETRY_AFTER_S_MAX

_FORGOTTEN_AFTER_S: Final = 60.0
"""A bucket that nobody has touched for this long is full again, and need not be kept."""


@dataclass(slots=True)
class _Bucket:
    """What is left of the second: requests and bytes, below zero for debts. `at` is monotonic."""

    requests: float
    bytes: float
    at: float


class Shares:
    """What the containers have of one process."""

    __slots__ = ("_buckets", "_fair", "_processes", "_under_way", "over", "refused", "total")

    def __init__(self, *, processes: int = 1, fair: int = REQUESTS_UNDER_WAY_FAIR) -> None:
        """`processes` share the port, so each has that part of every rate."""
        self._processes = processes
        self._fair = fair
        self._under_way: dict[bytes, int] = {}
        self._buckets: dict[bytes, _Bucket] = {}
        self.total = 0
        self.refused = 0
        self.over = 0
        """Requests beyond the rate of a container that only wants to know of them."""

    def enter(self, container: Container, now: float) -> bool:
        """Begin a request; whether it is beyond a rate that is only tracked. Raises Overloaded, QuotaExceeded."""
        is_over = container.policy.has_rates and self.take_request(container, now)
        if not self.try_enter(container.owner):
            self.refused += 1
            raise Overloaded("this container has its share of the requests under way", retry_after_s=1)
        return is_over

    def try_enter(self, owner: bytes) -> bool:
        """Begin a request of a container without rates; False if it has its share."""
        count = self._under_way.get(owner, 0)
        if self.total >= self._fair and count >= self._fair // len(self._under_way):
            return False
        self._under_way[owner] = count + 1
        self.total += 1
        return True

    def leave(self, owner: bytes) -> None:
        """End a request."""
        count = self._under_way[owner] - 1
        self.total -= 1
        if count:
            self._under_way[owner] = count
        else:
            del self._under_way[owner]

    def charge(self, container: Container, size: int, now: float) -> None:
        """Count bytes that came in or went out."""
        rate = container.policy.quota_bytes_per_s
        if rate is not None and size:
            bucket = self._bucket(container, now)
            bucket.bytes -= size
            if container.policy.quota_mode is QuotaMode.TRACKING:
                # Nobody pays this debt; it must not wait for the day on which the quota is enforced.
                bucket.bytes = max(bucket.bytes, -rate)

    def take_request(self, container: Container, now: float) -> bool:
        """One request of the container's rate; whether it is beyond one that is only tracked. Raises QuotaExceeded."""
        policy = container.policy
        bucket = self._bucket(container, now)
        wait_s = 0.0
        if policy.quota_requests_per_s is not None and bucket.requests < 1:
            wait_s = (1 - bucket.requests) * self._processes / policy.quota_requests_per_s
        if policy.quota_bytes_per_s is not None and bucket.bytes <= 0:
            wait_s = max(wait_s, -bucket.bytes * self._processes / policy.quota_bytes_per_s)
        if wait_s or bucket.bytes <= 0:
            if policy.quota_mode is QuotaMode.TRACKING:
                self.over += 1
                return True
            self.refused += 1
            retry_after_s = max(1, min(RETRY_AFTER_S_MAX, int(wait_s) + 1))
            raise QuotaExceeded("the container has used up its rate", retry_after_s=retry_after_s)
        bucket.requests -= 1
        return False

    def _bucket(self, container: Container, now: float) -> _Bucket:
        """The container's bucket, with what has flowed in since it was looked at."""
        policy = container.policy
        # One request at least: a bucket that never holds one would never let one through.
        requests = max(1.0, (policy.quota_requests_per_s or 2**62) / self._processes)
        size = (policy.quota_bytes_per_s or 2**62) / self._processes
        bucket = self._buckets.get(container.owner)
        if bucket is None:
            self._forget(now)
            bucket = self._buckets[container.owner] = _Bucket(requests, size, now)
            return bucket
        passed = max(0.0, now - bucket.at)
        flow = (policy.quota_requests_per_s or 2**62) / self._processes
        bucket.requests = min(requests, bucket.requests + passed * flow)
        bucket.bytes = min(size, bucket.bytes + passed * size)
        bucket.at = now
        return bucket

    def _forget(self, now: float) -> None:
        """Drop buckets that are full again. Called when a new one is made, so there are few to look at."""
        old = [
            owner
            for owner, bucket in self._buckets.items()
            if now - bucket.at > _FORGOTTEN_AFTER_S and bucket.bytes >= 0
        ]
        for owner in old:
            del self._buckets[owner]


class Visit:
    """One request's place in the shares: taken for the first container that it is about, given back at its end.

    A batch may be about several: each that has rates is asked, and all its bytes count for each of them. Whoever mixes
    containers pays more; nobody gets around a rate by naming another container first.
    """

    __slots__ = ("_began", "_containers", "_shares", "is_over")

    def __init__(self, shares: Shares, began: float) -> None:
        """`began` is monotonic."""
        self._shares = shares
        self._began = began
        self._containers: list[Container] = []
        self.is_over = False
        """The request is beyond a quota that is only tracked."""

    def enter(self, container: Container) -> None:
        """Count the request for this container, unless it is counted already. Raises Overloaded, QuotaExceeded."""
        if not self._containers:
            self.is_over |= self._shares.enter(container, self._began)
            self._containers.append(container)
        elif container.policy.has_rates and container not in self._containers:
            self.is_over |= self._shares.take_request(container, self._began)
            self._containers.append(container)

    def end(self, size: int, now: float) -> None:
        """The request is over; `size` bytes of bodies came and went."""
        if self._containers:
            self._shares.leave(self._containers[0].owner)
        for container in self._containers:
            self._shares.charge(container, size, now)
        self._containers.clear()
