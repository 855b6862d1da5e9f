"""The yardstick: a bare aiohttp application that answers the same bytes from memory and drops what it is sent.

    python -m bench.bare --port 8080 --size 4096

What the store does beyond it (ids, checksums, records, the disk) is what a ratio to it shows. It logs no access and
runs on uvloop, as the store does. Bodies above 1 MiB are streamed in pieces, as a store must do it.
"""

import argparse
from typing import Final

import uvloop
from aiohttp import web

from bench.bodies import MIB, bare_path, body, distinct_bodies

_STREAM_PIECE_BYTES: Final = 1 * MIB


def application(size: int) -> web.Application:
    """The application for one size of body."""
    bodies = {bare_path(size, number)[1:]: body(size, number) for number in range(distinct_bodies(size))}

    async def get(request: web.Request) -> web.StreamResponse:
        data = bodies.get(request.match_info["name"])
        if data is None:
            raise web.HTTPNotFound
        if len(data) <= _STREAM_PIECE_BYTES:
            return web.Response(body=data)
        answer = web.StreamResponse()
        answer.content_length = len(data)
        await answer.prepare(request)
        view = memoryview(data)
        for start in range(0, len(data), _STREAM_PIECE_BYTES):
            await answer.write(view[start : start + _STREAM_PIECE_BYTES])
        await answer.write_eof()
        return answer

    async def post(request: web.Request) -> web.Response:
        while await request.content.readany():
            pass
        return web.Response(status=201)

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="GOOD")

    app = web.Application()
    app.router.add_get("/healthCheck", health)
    app.router.add_get("/{name}", get)
    app.router.add_post("/", post)
    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes of the bodies that GET answers")
    options = parser.parse_args()
    web.run_app(
        application(options.size),
        host="127.0.0.1",
        port=options.port,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
