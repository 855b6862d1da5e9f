"""R14: bytes that nobody wrote for every decoder: valid ones with bits turned, cut, doubled and mixed; and noise.

A decoder answers with a value or with the errors that its page names; anything else is raised here.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from ambry.blob.blob_id import BlobId, Kind, new_unique, parse_binary, parse_text
from ambry.blob.checksums import checksum_vector, root_of
from ambry.errors import AmbryError
from ambry.storage.checked_file import decode_document, encode_document
from ambry.storage.index_entry import decode_entry, encode_new_put
from ambry.storage.journal import JournalEntry, decode_group_header, decode_payload, encode_group
from ambry.storage.record import (
    RecordKind,
    check_body,
    decode_header,
    decode_meta,
    encode_meta,
    padding_after,
    read_whole,
)
from ambry.storage.segment import check_segment_header, encode_segment_header
from ambry.storage.survey import decode_survey

_ID: Final = BlobId(Kind.SIMPLE, 1, 2, 3, 4, new_unique(1_700_000_000_000, bytes(10))).binary()


def _record() -> bytes:
    body = bytes(range(256)) * 4
    vector = checksum_vector(body)
    meta = encode_meta(
        seed=7,
        kind=RecordKind.PUT,
        lsn=9,
        time_ms=1,
        life=0,
        expires_at_ms=5,
        key=_ID,
        properties=b"properties",
        body_size=len(body),
        root=root_of(vector, len(body)),
    )
    whole = meta + body + vector
    return whole + padding_after(len(whole))


def _decode_record(data: bytes) -> None:
    header = decode_header(data, 7)
    decode_meta(header, data, 7)
    check_body(header, data)


def _decode_group(data: bytes) -> None:
    header = decode_group_header(data, 7)
    if header is not None:
        decode_payload(data[48 : 48 + header[3]], header[2])


def _decode_rows(data: bytes) -> None:
    decode_payload(data, len(data) % 5)


_GROUP: Final = encode_group(3, 1, 7, [JournalEntry(1, 2, 64, 8, 0, b"12345678")])
_ENTRY: Final = encode_new_put(
    segment=1,
    offset=64,
    record_size=200,
    body_offset=104,
    body_size=80,
    expires_at_ms=1,
    lsn=9,
    time_ms=3,
    root=4,
    id_head=_ID[:12],
)

TARGETS: Final[dict[str, tuple[bytes, Callable[[bytes], object]]]] = {
    "record": (_record(), _decode_record),
    "read_whole": (_record(), lambda data: read_whole(data, 7, _ID)),
    "segment": (
        encode_segment_header(partition=1, number=2, incarnation=bytes(16), created_ms=3),
        lambda data: check_segment_header(data, partition=1, number=2, incarnation=bytes(16)),
    ),
    "group": (_GROUP, _decode_group),
    "rows": (_GROUP, _decode_rows),
    "document": (encode_document(b"TEST", 1, {"a": 1}), lambda data: decode_document(data, b"TEST", 1, "a file")),
    "entry": (_ENTRY, decode_entry),
    "survey": (bytes(32), decode_survey),
    "blob_id": (_ID, parse_binary),
    "blob_id_text": (parse_binary(_ID).text().encode(), lambda data: parse_text(data.decode("latin-1"))),
}


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Some bytes near `data`."""
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(200))
        case 1:
            return data[: chance.randrange(len(data) + 1)]
        case 2:
            cut = chance.randrange(len(data) + 1)
            return data[:cut] + chance.choice(others)[cut:]
        case 3:
            return data * 2
        case _:
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 2, 8))):
                changed[chance.randrange(len(changed))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
            return bytes(changed)


def prove_fuzz(chosen: int, seconds: float) -> dict[str, object]:
    """Executions for each decoder, and how many were answered with a value."""
    chance = random.Random(chosen)
    others = [data for data, _ in TARGETS.values()]
    end_s = time.monotonic() + seconds
    executions: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    while not executions or time.monotonic() < end_s:
        for name, (valid, decode) in TARGETS.items():
            for _ in range(100):
                data = mutated(valid, others, chance)
                executions[name] += 1
                try:
                    decode(data)
                except AmbryError:
                    continue
                except BaseException:
                    print(f"decoder {name} did not take: {data.hex()}")
                    raise
                accepted[name] += 1
    return {"executions": executions.total(), "accepted": dict(accepted)}
