"""Frames: bytes to frames and back, whole and one byte at a time; whatever else arrives is a ProtocolError."""

import itertools
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry import limits
from ambry.errors import ProtocolError
from ambry.protocol.frame import HEADER_LAYOUT, HEADER_SIZE, Frame, FrameDecoder, encode_frame

frames = st.builds(
    Frame,
    st.integers(1, 255),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.one_of(st.binary(max_size=200), st.binary(min_size=17_000, max_size=17_001)),
)


def bytes_of(frame: Frame) -> bytes:
    return encode_frame(frame.type, frame.request_id, frame.header, len(frame.body)) + bytes(frame.body)


def open_decoder() -> FrameDecoder:
    decoder = FrameDecoder()
    decoder.raise_limits()
    return decoder


def decode(decoder: FrameDecoder, pieces: Sequence[bytes], count_max: int = 3) -> list[Frame]:
    found: list[Frame] = []
    for piece in pieces:
        decoder.feed(piece)
        while some := decoder.frames(count_max):
            assert len(some) <= count_max
            found += some
    return found


GOOD = Frame(17, 5, b"\x93\x01\x02\x03", b"body")


def test_the_bytes_of_a_frame_are_those_of_the_format() -> None:
    assert bytes_of(GOOD).hex() == ("414d4257fce0d5eadd35ffd0011100000000000000000005000000040000000493010203626f6479")
    assert [field for field, _, size in HEADER_LAYOUT if size] == [
        "magic", "check", "version", "type", "flags", "request id", "header size", "body size",
    ]  # fmt: skip


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 60_000), max_size=8), st.integers(1, 5))
def test_frames_come_out_as_they_went_in_wherever_the_bytes_are_cut(
    sent: list[Frame], cuts: list[int], count_max: int
) -> None:
    data = b"".join(map(bytes_of, sent))
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    decoder = open_decoder()
    assert decode(decoder, pieces, count_max) == sent
    assert decoder.buffered_size == 0


@given(st.lists(frames, max_size=3))
def test_frames_come_out_as_they_went_in_one_byte_at_a_time(sent: list[Frame]) -> None:
    data = b"".join(map(bytes_of, sent))
    decoder = open_decoder()
    assert decode(decoder, [data[at : at + 1] for at in range(len(data))]) == sent


@pytest.mark.parametrize("bit", range((HEADER_SIZE + len(GOOD.header)) * 8))
def test_no_flipped_bit_of_a_header_makes_a_frame(bit: int) -> None:
    data = bytearray(bytes_of(GOOD))
    data[bit // 8] ^= 1 << bit % 8
    decoder = open_decoder()
    # What follows would satisfy a size that was flipped to a greater one.
    filler = bytes(limits.FRAME_HEADER_BYTES_MAX)
    with pytest.raises(ProtocolError):
        assert decode(decoder, [bytes(data), filler]) == []


@pytest.mark.parametrize("bit", range(24 * 8, 32 * 8))
def test_a_flipped_size_is_noticed_before_the_body_it_promises(bit: int) -> None:
    data = bytearray(bytes_of(GOOD))
    data[bit // 8] ^= 1 << bit % 8
    decoder = open_decoder()
    if bit >= 28 * 8:
        with pytest.raises(ProtocolError):
            decode(decoder, [bytes(data[at : at + 1]) for at in range(HEADER_SIZE + len(GOOD.header))])


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_any_bytes_at_all_give_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    decoder = open_decoder()
    try:
        assert decode(decoder, pieces) == []
    except ProtocolError:
        with pytest.raises(ProtocolError):
            decoder.frames(1)
        decoder.feed(bytes_of(GOOD))
        with pytest.raises(ProtocolError):
            decoder.frames(1)


@given(st.lists(frames, max_size=3), st.binary(min_size=HEADER_SIZE, max_size=100), st.booleans())
def test_frames_before_garbage_are_not_lost(sent: list[Frame], garbage: bytes, is_bytewise: bool) -> None:
    data = b"".join(map(bytes_of, sent)) + garbage
    decoder = open_decoder()
    found: list[Frame] = []

    def decode_all() -> None:
        for piece in [data[at : at + 1] for at in range(len(data))] if is_bytewise else [data]:
            decoder.feed(piece)
            while some := decoder.frames(2):
                found.extend(some)

    with pytest.raises(ProtocolError):
        decode_all()
    assert found == sent


@pytest.mark.parametrize(
    ("header_size", "body_size", "field"),
    [
        (limits.FRAME_HEADER_BYTES_MAX + 1, 0, "header size"),
        (0, limits.FRAME_BODY_BYTES_MAX + 1, "body size"),
        (2**32 - 1, 2**32 - 1, "header size"),
    ],
)
def test_oversize_is_refused_at_the_fixed_header_and_buffers_nothing(
    header_size: int, body_size: int, field: str
) -> None:
    fixed = bytearray(bytes_of(GOOD)[:HEADER_SIZE])
    fixed[24:28] = header_size.to_bytes(4, "big")
    fixed[28:32] = body_size.to_bytes(4, "big")
    decoder = open_decoder()
    decoder.feed(bytes(fixed))
    with pytest.raises(ProtocolError) as caught:
        decoder.frames(1)
    assert caught.value.facts["field"] == field
    assert decoder.buffered_size == 0


def test_before_the_limits_are_raised_there_is_room_for_a_handshake_only() -> None:
    decoder = FrameDecoder()
    small = encode_frame(1, 0, bytes(limits.HANDSHAKE_HEADER_BYTES_MAX))
    decoder.feed(small)
    assert len(decoder.frames(9)) == 1
    for fixed in (encode_frame(1, 0, bytes(limits.HANDSHAKE_HEADER_BYTES_MAX + 1)), encode_frame(1, 0, b"", 1)):
        decoder = FrameDecoder()
        decoder.feed(fixed[:HEADER_SIZE])
        with pytest.raises(ProtocolError):
            decoder.frames(9)


def test_what_is_behind_a_frame_waits_for_the_limits_to_be_raised() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(2, 0, b"") + bytes_of(GOOD))
    assert [frame.type for frame in decoder.frames(1)] == [2]
    decoder.raise_limits()
    assert decoder.frames(9) == [GOOD]


def test_the_largest_body_costs_little_more_than_itself() -> None:
    body = bytes(limits.FRAME_BODY_BYTES_MAX)
    head = encode_frame(16, 1, b"\x90", len(body))
    piece = bytes(256 * limits.KIB)
    decoder = open_decoder()
    tracemalloc.start()
    try:
        decoder.feed(head)
        assert decoder.frames(1) == []
        for _ in range(len(body) // len(piece)):
            decoder.feed(piece)
            found = decoder.frames(1)
        assert len(found[0].body) == len(body)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(body)
    finally:
        tracemalloc.stop()


def test_a_promised_body_has_its_memory_once_and_only_after_the_check() -> None:
    head = bytearray(encode_frame(16, 1, b"\x90", limits.FRAME_BODY_BYTES_MAX))
    bad = bytes(head[:4]) + bytes(8) + bytes(head[12:])
    tracemalloc.start()
    try:
        decoder = open_decoder()
        decoder.feed(bad)
        with pytest.raises(ProtocolError):
            decoder.frames(1)
        assert tracemalloc.get_traced_memory()[1] < 10 * limits.KIB
        decoder = open_decoder()
        decoder.feed(bytes(head))
        assert decoder.frames(1) == []
        assert tracemalloc.get_traced_memory()[1] < limits.FRAME_BODY_BYTES_MAX + 10 * limits.KIB
    finally:
        tracemalloc.stop()


def test_a_large_body_is_a_view_and_a_small_one_its_own_bytes() -> None:
    decoder = open_decoder()
    decoder.feed(bytes_of(GOOD) + bytes_of(replace(GOOD, body=bytes(100_000))))
    small, large = decoder.frames(2)
    assert isinstance(small.body, bytes)
    assert isinstance(large.body, memoryview)
    assert large.body.readonly
