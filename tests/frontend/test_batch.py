"""Batches over HTTP: every item is what its single request would be, in order, and a whole answer has its end."""

import asyncio
import base64
import contextlib
import io
import json
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from ambry.blob.batch_format import (
    CONTENT_TYPE,
    ITEM_SIZE,
    Item,
    ItemKind,
    decode_checks,
    decode_item,
    encode_checks,
    encode_end,
    encode_put,
)
from ambry.blob.state import NEVER
from ambry.errors import BadRequest, DiskFull
from ambry.frontend.put import Cut
from ambry.limits import BATCH_IDS_MAX, CHUNK_BYTES_MAX, KIB
from ambry.names.open import open_database
from tests.frontend.serving import Serving, serving

NAMES = "/named/default/default"
SMALL = Cut(chunk_bytes=50_000, manifest_entries=4)
UNKNOWN = "AQEAAQAAAAEAAAABAAAAAQ" + "A" * 21

Test = Callable[[Serving, aiohttp.ClientSession], Awaitable[None]]


def run(test: Test, *, cut: Cut | None = None, nodes: int = 1) -> None:
    async def main() -> None:
        async with serving(cut=cut, nodes=nodes) as running:
            url = f"http://{running.host}:{running.port}"
            async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(30)) as session:
                await test(running, session)

    asyncio.run(main())


@dataclass
class Answered:
    """One item of an answer, taken apart."""

    status: int
    head: Mapping[str, Any]
    body: bytes
    item: Item


def taken_apart(data: bytes) -> tuple[list[Answered], Answered]:
    """The answers, and the end."""
    found = []
    at = 0
    while at < len(data):
        item = decode_item(data, at)
        head = data[at + ITEM_SIZE : at + ITEM_SIZE + item.head_size]
        body = data[at + ITEM_SIZE + item.head_size : at + item.size]
        assert len(body) == item.body_size
        found.append(Answered(item.status, json.loads(head) if head else {}, body, item))
        at += item.size
    assert at == len(data)
    assert [one.item.kind for one in found] == [ItemKind.ANSWER] * (len(found) - 1) + [ItemKind.END]
    assert found[-1].item.count == len(found) - 1
    return found[:-1], found[-1]


async def batch(
    session: aiohttp.ClientSession, what: str, ids: Iterable[str], headers: Mapping[str, str] | None = None
) -> list[Answered]:
    async with session.post(f"/batch/{what}", data="\n".join(ids), headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == CONTENT_TYPE
        found, end = taken_apart(await answer.read())
        assert end.status == 0
        return found


def puts(*items: tuple[Mapping[str, Any], bytes]) -> bytes:
    parts = []
    for head, body in items:
        parts += [encode_put(json.dumps(head).encode() if head else b"", len(body), xxh3_64_intdigest(body)), body]
    return b"".join([*parts, encode_end(len(items))])


def test_what_a_batch_puts_a_batch_gets() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    head = {
        "content_type": "text/plain",
        "filename": "a b",
        "service_id": "svc",
        "ttl_s": 60,
        "user_metadata": {"k": "ä"},
    }
    bodies = [chance.randbytes(chance.choice((0, 1, 4 * KIB, 100_000))) for _ in range(150)]

    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        async with session.post("/batch/put", data=io.BytesIO(puts(*((head, body) for body in bodies)))) as answer:
            stored, end = taken_apart(await answer.read())
        assert end.status == 0 and [one.status for one in stored] == [201] * len(bodies)
        ids = [one.head["id"] for one in stored]
        assert len(set(ids)) == len(bodies)
        for body, one in zip(bodies, await batch(session, "get", ids), strict=True):
            assert (one.status, one.body) == (200, body)
            assert one.item.check in {xxh3_64_intdigest(body), 0}
            assert {**one.head} == {**{k: v for k, v in head.items() if k != "ttl_s"}, "size": len(body)}
            assert one.item.created_ms == running.clock.now_ms()
            assert one.item.expires_at_ms == running.clock.now_ms() + 60_000
        stated = await batch(session, "stat", ids)
        assert [(one.status, one.head["size"], one.body) for one in stated] == [(200, len(b), b"") for b in bodies]
        single = await running.ask("GET", f"/{ids[3]}")
        assert (single.body, single.headers["x-ambry-enc-um-k"]) == (bodies[3], "%C3%A4")

    run(test)


@pytest.mark.parametrize("is_warm", [True, False])
def test_each_item_has_the_status_of_its_single_request(is_warm: bool) -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        running.node.is_warm = is_warm
        lives = (await running.put(b"lives"))[1:]
        deleted = (await running.put(b"deleted"))[1:]
        expired = (await running.put(b"expired", {"x-ambry-ttl": "1"}))[1:]
        damaged = (await running.put(b"damaged"))[1:]
        await running.ask("DELETE", f"/{deleted}")
        running.clock.advance(2_000)
        running.node.damage(next(key for key, blob in running.node.blobs.items() if blob.put.body == b"damaged"))  # type: ignore[union-attr] # it has a body
        ids = [lives, deleted, expired, damaged, UNKNOWN, "nonsense", "ä"]
        singles = [await running.ask("GET", f"/{one}") for one in ids[:-1]]
        for what in ("get", "stat"):
            found = await batch(session, what, ids)
            wanted = [single.status for single in singles]
            if what == "stat":
                wanted[3] = found[3].status
            assert [one.status for one in found] == [*wanted, 400]
            for one, single in zip(found[1:6], singles[1:], strict=True):
                if one.status >= 400:
                    assert one.head["code"] == single.error["code"]
                    assert one.head["message"] == single.error["message"]
        kept = await batch(session, "get", [deleted, expired], {"x-ambry-get-option": "Include_All"})
        assert [(one.status, one.body) for one in kept] == [(200, b"deleted"), (200, b"expired")]

    run(test)


@pytest.mark.parametrize("is_warm", [True, False])
def test_blobs_of_any_size_come_whole_and_in_order(is_warm: bool) -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        running.node.is_warm = is_warm
        bodies = [bytes([n]) * size for n, size in enumerate((0, 10, 50_000, 50_001, 700_000, 1, 70_000, 64 * KIB))]
        ids = [(await running.put(body))[1:] for body in bodies]
        found = await batch(session, "get", ids * 3)
        assert [one.body for one in found] == bodies * 3
        async with session.post("/batch/get", data="\n".join(ids * 3)) as answer:
            items, end = taken_apart(await answer.read())
        late = decode_checks(json.dumps(end.head).encode())
        checks = [late.get(number, one.item.check) for number, one in enumerate(items)]
        assert checks == [xxh3_64_intdigest(body) for body in bodies * 3]
        assert set(late) == {number for number, one in enumerate(items) if one.body and not one.item.check}
        assert {len(items[number].body) for number in late} >= {700_000, 70_000}
        assert await batch(session, "get", []) == []

    run(test, cut=SMALL)


@pytest.mark.parametrize("is_warm", [True, False])
def test_more_bytes_than_a_window_holds_come_whole_and_in_order(is_warm: bool) -> None:
    sizes = [128 * KIB] * 40 + [1, 128 * KIB + 1, 300 * KIB, 0, 90_000] * 3

    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        running.node.is_warm = is_warm
        bodies = [bytes([n]) * size for n, size in enumerate(sizes)]
        ids = [(await running.put(body))[1:] for body in bodies]
        ids[3:3] = [UNKNOWN]
        bodies[3:3] = [b""]
        async with session.post("/batch/get", data="\n".join(ids)) as answer:
            items, end = taken_apart(await answer.read())
        assert [one.status for one in items] == [404 if one == UNKNOWN else 200 for one in ids]
        assert [one.body for one in items if one.status == 200] == bodies[:3] + bodies[4:]
        late = decode_checks(json.dumps(end.head).encode())
        assert set(late) == {number for number, body in enumerate(bodies) if len(body) > 128 * KIB}
        assert all(
            late.get(number, one.item.check) == xxh3_64_intdigest(one.body)
            for number, one in enumerate(items)
            if one.status == 200
        )

    run(test)


@given(head=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8"))))
@example(head=b'{"checks": {"1": "zz"}}')
@example(head=b'{"checks": [1]}')
@example(head=b"[" * 100_000)
def test_any_head_of_an_end_has_checks_or_is_refused(head: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert all(isinstance(one, int) for pair in decode_checks(head).items() for one in pair)
    assert decode_checks(encode_checks({3: 2**64 - 1, 0: 0})) == {3: 2**64 - 1, 0: 0}
    assert encode_checks({}) == b""


def test_a_batch_deletes() -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        ids = [(await running.put(bytes([n])))[1:] for n in range(130)]
        found = await batch(session, "delete", [*ids, ids[0], UNKNOWN])
        assert [one.status for one in found] == [202] * 131 + [404]
        assert {one.status for one in await batch(session, "get", ids)} == {410}

    run(test, nodes=3)


def test_a_bad_item_of_a_put_harms_no_other() -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        wrong = encode_put(b"", 3, 1) + b"abc"
        unknown = puts(({"colour": "red"}, b"x"))[:-ITEM_SIZE]
        no_json = encode_put(b"{", 1, 0) + b"x"
        control = puts(({"filename": "a\x01"}, b"x"))[:-ITEM_SIZE]
        large = encode_put(b"", CHUNK_BYTES_MAX + 1, 0) + bytes(CHUNK_BYTES_MAX + 1)
        good = puts(({}, b"good"))[:-ITEM_SIZE]
        data = good + wrong + unknown + no_json + control + large + good + encode_end(7)
        async with session.post("/batch/put", data=io.BytesIO(data)) as answer:
            found, _ = taken_apart(await answer.read())
        assert [one.status for one in found] == [201, 400, 400, 400, 400, 413, 201]
        assert [one.head.get("field") for one in found[1:5]] == ["check", "colour", "head", "x-ambry-filename"]
        assert (await running.ask("GET", "/" + found[6].head["id"])).body == b"good"
        running.node.fail("put", DiskFull("full"), times=None)
        async with session.post("/batch/put", data=puts(({}, b"a"), ({}, b"b"))) as answer:
            found, _ = taken_apart(await answer.read())
        assert {one.status for one in found} <= {503, 507}

    run(test)


@pytest.mark.parametrize("size", [1, 47, 1000, 70_000])
def test_items_are_the_same_in_whatever_pieces_they_arrive(size: int) -> None:
    bodies = [bytes([n]) * (n * 37 % 301) for n in range(20)]
    if size >= 1000:
        bodies += [b"x" * 64 * KIB, b"y" * (64 * KIB + 1), b"z" * 300_000]
    data = puts(*(({"filename": f"{n}"}, body) for n, body in enumerate(bodies)))

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    async def test(_: Serving, session: aiohttp.ClientSession) -> None:
        async with session.post("/batch/put", data=pieces()) as answer:
            stored, end = taken_apart(await answer.read())
        assert (end.status, len(stored)) == (0, len(bodies))
        found = await batch(session, "get", [one.head["id"] for one in stored])
        assert [one.body for one in found] == bodies

    run(test)


def test_a_body_that_breaks_off_keeps_what_was_stored_and_says_so() -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        good = puts(({}, b"good"))[:-ITEM_SIZE]
        for rest in (
            b"nonsense" * 10,
            good[:-1],
            good[: ITEM_SIZE - 1],
            encode_put(b"", 0, 0).replace(b"\1\1", b"\1\2"),
        ):
            async with session.post("/batch/put", data=good + rest) as answer:
                found, end = taken_apart(await answer.read())
            assert [one.status for one in found] == [201]
            assert (end.status, end.head["code"]) == (400, "bad_request")
            assert (await running.ask("GET", "/" + found[0].head["id"])).body == b"good"
        async with session.post("/batch/put", data=b"nonsense" * 10) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "bad_request")
        async with session.post("/batch/put", data=b"") as answer:
            assert taken_apart(await answer.read())[0] == []

    run(test)


def test_a_list_of_ids_has_its_limit() -> None:
    async def test(running: Serving, session: aiohttp.ClientSession) -> None:
        for what in ("get", "stat", "delete"):
            async with session.post(f"/batch/{what}", data="x\n" * (BATCH_IDS_MAX + 1)) as answer:
                assert (answer.status, (await answer.json())["code"]) == (413, "too_large")
            async with session.get(f"/batch/{what}") as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")

    run(test)


def test_an_item_is_read_as_it_was_written_and_anything_else_is_refused() -> None:
    data = encode_put(b"{}", 5, 7)
    item = decode_item(data + b"hello")
    assert (item.kind, item.head_size, item.body_size, item.check, item.size) == (ItemKind.PUT, 2, 5, 7, ITEM_SIZE + 7)
    for place in (0, 4, 5):
        for value in (0, 99):
            broken = bytearray(data)
            broken[place] = value
            with pytest.raises(BadRequest):
                decode_item(broken)
    with pytest.raises(BadRequest):
        decode_item(data[: ITEM_SIZE - 1])
    assert struct.unpack_from("<Q", encode_end(1), 40) == (0,) != (NEVER,)


def test_items_get_names_each_as_by_a_put_of_its_own(store_url: str) -> None:
    async def story(running: Serving, session: aiohttp.ClientSession) -> None:
        items: list[tuple[Mapping[str, Any], bytes]] = [
            ({"name": "a/ü", "filename": "ü", "user_metadata": {"k": "v"}}, b"first"),
            ({"name": "b"}, b"second"),
            ({"name": "b"}, b"taken by the one before"),
            ({"name": "b", "upsert": True}, b"third"),
            ({"name": "../c"}, b"no name"),
            ({"name": ""}, b"no name"),
            ({"name": 7}, b"no name"),
            ({"upsert": True}, b"no name to replace"),
            ({"name": "d", "upsert": 1}, b"neither true nor false"),
            ({"filename": "e"}, b"without a name"),
        ]
        async with session.post("/batch/put", data=puts(*items)) as answer:
            found, _ = taken_apart(await answer.read())
        assert [one.status for one in found] == [201, 201, 409, 201, 400, 400, 400, 400, 400, 201]
        assert [one.head.get("code") for one in found[2:5]] == ["name_exists", None, "bad_name"]
        assert all(len(one.head["version"]) == 20 for one in found if one.status == 201 and "version" in one.head)
        async with session.get(f"{NAMES}/a/%C3%BC") as got:
            assert await got.read() == b"first"
            assert got.headers["x-ambry-blob-id"] == found[0].head["id"]
            assert got.headers["x-ambry-named-version"] == found[0].head["version"]
            assert got.headers["x-ambry-um-k"] == "v"
            # The check that came with the item is kept.
            digest = base64.b64encode(xxh3_64_intdigest(b"first").to_bytes(8, "big")).decode()
            assert got.headers["Repr-Digest"] == f"xxh3=:{digest}:"
        async with session.get(f"{NAMES}/b") as got:
            assert await got.read() == b"third"
        async with session.get(f"/{found[9].head['id']}") as got:
            assert await got.read() == b"without a name"

    async def main() -> None:
        database = open_database(store_url)
        try:
            async with serving(database=database) as running:
                url = f"http://{running.host}:{running.port}"
                async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(30)) as session:
                    await story(running, session)
        finally:
            await database.close()

    asyncio.run(main())


def test_without_a_name_store_items_have_no_names() -> None:
    async def story(_: Serving, session: aiohttp.ClientSession) -> None:
        async with session.post("/batch/put", data=puts(({"name": "a"}, b"a"), ({}, b"b"))) as answer:
            found = taken_apart(await answer.read())[0]
        assert [one.status for one in found] == [503, 201]

    run(story)
