"""The session of one feed, without time or wires: whatever is lost, comes twice or too late, nothing is passed over."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.blob import blob_id as ids
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.requests import ChangeEntry, StateAnswer
from ambry.blob.state import NEVER, BlobState, join
from ambry.protocol.replication import NOTHING_READ, Page, PeerToken, Token
from ambry.replication.session import EXPIRED_KEPT_MS, FeedSession, Need, Work, need_of

NOW_MS = 1_764_000_000_000
IDS = [
    BlobId(Kind.SIMPLE, datacentre, 1, 1, 7, ids.new_unique(NOW_MS, bytes([number] * 10))).binary()
    for number, datacentre in enumerate((1, 1, 1, 2, 2, 2))
]
LIVE = BlobState(0, NEVER)


@dataclass
class Feed:
    """A peer's replica: the newest change of each blob by LSN. A new life begins with another incarnation."""

    incarnation: bytes = b"\x01" * 16
    end_lsn: int = 0
    blobs: dict[bytes, ChangeEntry] = field(default_factory=dict)

    def change(self, blob_id: bytes, state: BlobState, *, has_body: bool) -> None:
        self.end_lsn += 1
        old = self.blobs.get(blob_id)
        if old is not None:
            state, has_body = join(old.state, state), has_body or old.has_body
        self.blobs[blob_id] = ChangeEntry(self.end_lsn, blob_id, state, has_body, 10, NOW_MS)

    def page(self, token: Token, limit: int) -> Page:
        after = token.lsn if token.incarnation == self.incarnation else 0
        newer = sorted((one for one in self.blobs.values() if one.lsn > after), key=lambda one: one.lsn)
        some = tuple(newer[:limit])
        through = some[-1].lsn if len(newer) > limit else self.end_lsn
        return Page(7, self.incarnation, after, through, self.end_lsn, 0, some, ())


class Replica:
    """This side: what is durable, and the queue of holes."""

    def __init__(self) -> None:
        self.known: dict[bytes, StateAnswer] = {}
        self.holes: set[bytes] = set()
        self.token = NOTHING_READ

    def look_up(self, entries: tuple[ChangeEntry, ...]) -> list[StateAnswer | None]:
        return [self.known.get(entry.blob_id) for entry in entries]

    def apply(self, entry: ChangeEntry, *, with_body: bool) -> None:
        old = self.known.get(entry.blob_id)
        state = entry.state if old is None else join(old.state, entry.state)
        has_body = (old is not None and old.has_body) or (with_body and not state.is_deleted)
        self.known[entry.blob_id] = StateAnswer(state, has_body)
        if not has_body and not state.is_deleted:
            self.holes.add(entry.blob_id)
        else:
            self.holes.discard(entry.blob_id)

    def covers(self, feed: Feed, token: Token) -> bool:
        """Guarantee G5: everything up to the token is here, present, or queued."""
        if token.incarnation != feed.incarnation:
            return True
        for entry in feed.blobs.values():
            if entry.lsn <= token.lsn:
                known = self.known.get(entry.blob_id)
                if known is None or join(known.state, entry.state) != known.state:
                    return False
                if not known.state.is_deleted and not known.has_body and entry.blob_id not in self.holes:
                    return False
        return True


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(IDS)),
        st.tuples(st.just("delete"), st.sampled_from(IDS)),
        st.tuples(st.just("undelete"), st.sampled_from(IDS)),
        st.tuples(st.just("here"), st.sampled_from(IDS)),
        st.tuples(st.just("poll"), st.integers(1, 3)),
        st.tuples(st.just("duplicate"), st.integers(0, 5)),
        st.tuples(st.just("settle"), st.integers(0, 7)),
        st.tuples(st.just("hole"), st.integers(0, 7)),
        st.tuples(st.just("later"), st.integers(0, 7)),
        st.tuples(st.just("due"), st.integers(0, 3000)),
        st.tuples(st.just("remember"), st.none()),
        st.tuples(st.just("lost"), st.none()),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("emptied"), st.none()),
    ),
    max_size=60,
)


class Run:
    """A session between a feed and a replica."""

    def __init__(self) -> None:
        self.feed, self.replica = Feed(), Replica()
        self.session = self.new_session()
        self.pages: list[Page] = []
        self.work: list[tuple[ChangeEntry, bool]] = []

    def new_session(self) -> FeedSession:
        return FeedSession(7, "peer", self.replica.token, own_datacentre=1, delay_ms=2000)

    def take(self, page: Page) -> None:
        work = self.session.take(page, self.replica.look_up(page.entries), NOW_MS)
        assert not any(entry.state.is_deleted for entry in work.bodies), "the body of a dead blob is never fetched"
        self.work += [(entry, False) for entry in work.joins] + [(entry, True) for entry in work.bodies]

    def settle(self, entry: ChangeEntry, *, with_body: bool) -> None:
        there = self.feed.blobs.get(entry.blob_id)
        self.replica.apply(entry, with_body=with_body and there is not None and there.has_body)
        self.session.settled(entry)

    def step(self, name: str, value: object) -> None:
        match name, value:
            case "put", bytes(blob_id):
                self.feed.change(blob_id, LIVE, has_body=True)
            case (("delete" | "undelete"), bytes(blob_id)):
                life = self.feed.blobs[blob_id].state.life if blob_id in self.feed.blobs else 0
                odd = life | 1 if name == "delete" else life + (life & 1)
                self.feed.change(blob_id, BlobState(odd, NEVER), has_body=False)
            case "here", bytes(blob_id):
                self.replica.apply(ChangeEntry(0, blob_id, LIVE, True, 10, NOW_MS), with_body=True)
            case "poll", int(limit):
                self.pages.append(self.feed.page(self.session.position, limit))
                self.take(self.pages[-1])
            case "duplicate", int(at) if at < len(self.pages):
                self.take(self.pages[at])
            case (("settle" | "hole" | "later"), int(at)) if at < len(self.work):
                entry, with_body = self.work.pop(at)
                if name == "later":
                    self.session.postpone(entry, NOW_MS + 1000)
                else:
                    self.settle(entry, with_body=with_body and name == "settle")
            case "due", int(after_ms):
                self.bring_due(NOW_MS + after_ms)
            case "remember", _:
                self.replica.token = self.session.token
            case "lost", _:
                self.session.rewind()
                self.work.clear()
            case "crash", _:
                self.session = self.new_session()
                self.work.clear()
            case "emptied", _:
                # The peer comes back with another incarnation, and only with what it is given again.
                self.feed = Feed(bytes([self.feed.incarnation[0] + 1]) * 16)
                self.pages.clear()
            case _:
                pass

    def bring_due(self, now_ms: int) -> None:
        for entry in self.session.due(now_ms):
            known = self.replica.known.get(entry.blob_id)
            need = need_of(entry, known, now_ms)
            if need is Need.NOTHING:
                self.session.settled(entry)
            else:
                self.work.append((entry, need is Need.BODY))

    def finish(self) -> None:
        """No more trouble: everything comes."""
        for _ in range(200):
            self.take(self.feed.page(self.session.position, 2))
            self.bring_due(NOW_MS + 10_000)
            while self.work:
                entry, with_body = self.work.pop()
                self.settle(entry, with_body=with_body)
            if self.session.is_caught_up and self.session.token == Token(self.feed.incarnation, self.feed.end_lsn):
                return
        raise AssertionError("it never caught up")


@settings(max_examples=400, deadline=None)
@given(steps)
def test_no_token_passes_a_hole_and_all_that_is_there_comes(some: list[tuple[str, object]]) -> None:
    run = Run()
    for name, value in some:
        before = run.session.token
        run.step(name, value)
        token = run.session.token
        assert run.replica.covers(run.feed, token), (name, value)
        assert run.replica.covers(run.feed, run.replica.token), (name, value)
        if token.incarnation == before.incarnation and name != "crash":
            assert token.lsn >= before.lsn, "a token never goes back"
    run.finish()
    for blob_id, entry in run.feed.blobs.items():
        known = run.replica.known[blob_id]
        assert join(known.state, entry.state) == known.state
        if entry.has_body and not known.state.is_deleted:
            assert known.has_body or blob_id in run.replica.holes


def test_what_frontends_write_here_is_waited_for_and_what_they_do_not_is_not() -> None:
    run = Run()
    run.feed.change(IDS[0], LIVE, has_body=True)
    run.feed.change(IDS[3], LIVE, has_body=True)
    run.take(run.feed.page(NOTHING_READ, 10))
    assert [(entry.blob_id, with_body) for entry, with_body in run.work] == [(IDS[3], True)]
    assert run.session.due(NOW_MS + 1999) == []
    assert [entry.blob_id for entry in run.session.due(NOW_MS + 2000)] == [IDS[0]]


def test_an_old_change_is_fetched_at_once_and_a_clock_that_is_ahead_delays_by_two_seconds_at_most() -> None:
    for time_ms, is_at_once in ((NOW_MS - 2000, True), (NOW_MS + 3_600_000, False)):
        session = FeedSession(7, "peer", NOTHING_READ, own_datacentre=1, delay_ms=2000)
        entry = ChangeEntry(1, IDS[0], LIVE, True, 10, time_ms)
        work = session.take(Page(7, b"i" * 16, 0, 1, 1, 0, (entry,), ()), [None], NOW_MS)
        assert (work.bodies == (entry,)) is is_at_once
        assert is_at_once or session.due(NOW_MS + 2000) == [entry]


def test_what_expired_long_ago_is_of_no_concern() -> None:
    expired = BlobState(0, NOW_MS - EXPIRED_KEPT_MS)
    just_now = BlobState(0, NOW_MS - EXPIRED_KEPT_MS + 1)
    assert need_of(ChangeEntry(1, IDS[0], expired, True, 1, 1), None, NOW_MS) is Need.NOTHING
    assert need_of(ChangeEntry(1, IDS[0], just_now, True, 1, 1), None, NOW_MS) is Need.BODY
    assert need_of(ChangeEntry(1, IDS[0], BlobState(1, NEVER), False, 0, 1), None, NOW_MS) is Need.STATE


def test_tokens_of_a_peer_are_inherited_when_the_feed_is_read_as_far() -> None:
    session = FeedSession(7, "peer", NOTHING_READ, own_datacentre=1, delay_ms=0)
    told = (PeerToken("remote", Token(b"r" * 16, 55)),)
    entry = ChangeEntry(9, IDS[0], LIVE, True, 10, NOW_MS)
    session.take(Page(7, b"i" * 16, 0, 9, 9, 0, (entry,), told), [None], NOW_MS)
    assert session.token == Token(b"i" * 16, 8)
    assert session.inherited(session.token) == ()
    session.settled(entry)
    assert session.inherited(session.token) == told
    assert session.inherited(session.token) == ()


def test_a_page_behind_one_that_was_lost_is_not_taken() -> None:
    feed = Feed()
    for one in IDS[:3]:
        feed.change(one, LIVE, has_body=True)
    session = FeedSession(7, "peer", own_datacentre=1, delay_ms=0)
    first = feed.page(NOTHING_READ, 1)
    session.take(first, [None], NOW_MS)
    for entry in first.entries:
        session.settled(entry)
    read = Token(feed.incarnation, first.through_lsn)
    later = feed.page(Token(feed.incarnation, first.through_lsn + 1), 10)
    assert session.take(later, [None] * len(later.entries), NOW_MS) == Work()
    assert session.token == session.position == read
    whole = feed.page(read, 10)
    assert session.take(whole, [None] * len(whole.entries), NOW_MS).bodies == whole.entries
    assert session.position == Token(feed.incarnation, 3)


def test_a_page_from_the_middle_of_another_life_is_not_taken() -> None:
    feed = Feed()
    for one in IDS[:3]:
        feed.change(one, LIVE, has_body=True)
    known = Token(b"\x09" * 16, 1)
    session = FeedSession(7, "peer", known, own_datacentre=1, delay_ms=0)
    middle = feed.page(Token(feed.incarnation, 1), 10)
    assert session.take(middle, [None] * len(middle.entries), NOW_MS) == Work()
    assert session.token == known
