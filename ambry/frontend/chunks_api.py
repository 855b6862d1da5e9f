"""`GET /{id}/Segment/{n}` and `GET /{id}/BlobChunkIds`: a composite blob chunk by chunk.

A segment has an entity tag of its own, and takes one range. Ids of chunks are for operators and comparisons: no
operation of a client takes them.
"""

import json
from typing import Final

from aiohttp import web

from ambry.blob.blob_id import text_from_binary
from ambry.errors import BadRequest, RangeNotSatisfiable
from ambry.frontend import answers, conditions
from ambry.frontend.answers import Answer, Headers
from ambry.frontend.call import Call, get_option, is_quorum, started
from ambry.frontend.conditions import ByteRange
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.get import OpenBlob
from ambry.frontend.policy import with_policy

_DIGITS_MAX: Final = 9
"""No blob has a thousand million chunks."""


class ChunksApi:
    """Answers about the chunks of one blob."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    async def segment(self, call: Call) -> web.StreamResponse:
        """The bytes of one chunk, or a range of them; HEAD only the headers."""
        number = call.request.rel_url.raw_path.rpartition("/")[2]
        if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS_MAX):
            raise BadRequest("segments are numbered from 0 on", field="segment")
        operations = self._services.operations
        blob = await operations.open(call.blob_id, get_option(call), head_size=0, is_quorum=is_quorum(call))
        start, stop = await operations.segment(blob, int(number))
        size = stop - start
        ranges = _ranges(call, f'"{blob.text_id}/{number}"', size, blob.created_ms // 1000)
        piece = ByteRange(0, size) if ranges is None else ranges
        headers = _headers(call, blob, number, piece.size)
        if ranges is not None:
            headers.append(("Content-Range", piece.content_range(size)))
        headers = with_policy(headers, call.container.policy)
        status = 200 if ranges is None else 206
        if call.request.method == "HEAD" or not piece.size:
            return BodyResponse(Answer(status, headers))
        response = started(status, headers)
        await response.prepare(call.request)
        reader = operations.reader(blob, start + piece.start, start + piece.stop)
        try:
            while data := await reader.next():
                self._services.metrics.requests.bytes_out += len(data)
                await response.write(data)
        finally:
            await reader.close()
        await response.write_eof()
        return response

    async def chunk_ids(self, call: Call) -> web.StreamResponse:
        """The ids of all chunks in order, written a leaf at a time; none for a simple blob."""
        operations = self._services.operations
        blob = await operations.open(call.blob_id, get_option(call), head_size=0, is_quorum=is_quorum(call))
        common = answers.common_headers(call.now_ms, call.request_id)
        headers = [*common, ("Content-Type", answers.JSON_TYPE), ("Cache-Control", "no-store")]
        response = started(200, headers)
        await response.prepare(call.request)
        await response.write(b'{"blobChunkIds": [')
        comma = b""
        async for entries in operations.chunks(blob):
            ids = ", ".join(json.dumps(text_from_binary(entry.blob_id)) for entry in entries)
            await response.write(comma + ids.encode())
            comma = b", "
        await response.write_eof(b"]}\n")
        return response


def _ranges(call: Call, etag: str, size: int, modified_s: int) -> ByteRange | None:
    """The one range to send; None for everything. Raises BadRequest, RangeNotSatisfiable."""
    specs = conditions.parse_range(call.request.headers.get("Range"))
    if not specs or not conditions.range_applies(call.request.headers.get("If-Range"), etag, modified_s):
        return None
    ranges = conditions.resolve_ranges(specs, size)
    if len(ranges) > 1:
        raise RangeNotSatisfiable("one range of a segment at a time", size=size)
    return ranges[0]


def _headers(call: Call, blob: OpenBlob, number: str, size: int) -> Headers:
    own = answers.blob_headers(blob.text_id, blob.created_ms, blob.state, call.now_ms, call.request_id, size)
    etag = f'"{blob.text_id}/{number}"'
    headers = [(name, etag if name == "ETag" else value) for name, value in own]
    headers.append(("Content-Type", blob.properties.content_type))
    described = answers.described_headers(blob.properties)
    # The digests are of the whole blob.
    return headers + [line for line in described if line[0] != "Repr-Digest"]
