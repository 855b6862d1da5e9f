"""A reader of a peer's feeds lives for as long as its link, whatever happened to it before."""

import asyncio
from typing import cast

from ambry.clock import SystemClock
from ambry.protocol.replication import NOTHING_READ, Peer, PollAnswer, PollRequest
from ambry.replication.fetcher import Fetcher
from ambry.replication.local import Local
from ambry.replication.pace import Lane, Pace
from ambry.replication.puller import LinkFigures, Owner, Puller
from ambry.replication.session import FeedSession


class Held:
    """A peer whose polls are held for ever."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[PollRequest] = asyncio.Queue()

    def poll(self, request: PollRequest, deadline: float) -> "asyncio.Future[PollAnswer]":
        """No news."""
        del deadline
        self.asked.put_nowait(request)
        return asyncio.get_running_loop().create_future()


def session(partition: int) -> FeedSession:
    return FeedSession(partition, "peer", own_datacentre=1, delay_ms=0)


def test_a_poll_that_is_given_up_is_sent_again_although_an_earlier_group_of_fetches_was_cancelled() -> None:
    """Python 3.11 leaves a request to cancel with a task whose group failed late: it must not end the reader."""

    async def main() -> None:
        peer = Held()
        puller = Puller(
            cast("Peer", peer),
            cast("Local", None),
            cast("Fetcher", None),
            LinkFigures(),
            cast("Owner", None),
            lane=Lane.FRESH,
            pace=Pace(0),
            poll_pace_ms=0,
            clock=SystemClock(),
            number=lambda: 5,
        )

        async def read() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                assert task.cancelling() == 1
            await puller.run()

        puller.add(session(7), NOTHING_READ)
        reader = asyncio.create_task(read())
        async with asyncio.timeout(30):
            assert [one.partition for one in (await peer.asked.get()).positions] == [7]
            puller.add(session(8), NOTHING_READ)
            assert [one.partition for one in (await peer.asked.get()).positions] == [7, 8]
            reader.cancel()
            await asyncio.wait([reader])
        assert reader.cancelled()

    asyncio.run(main())
