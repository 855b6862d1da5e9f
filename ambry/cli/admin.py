"""The admin port of a datanode: plain HTTP with /metrics, /healthCheck, /check and, with ZooKeeper, /clusterMap."""

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from ambry.datanode.local import LocalDatanode
from ambry.errors import AmbryError
from ambry.metrics import CONTENT_TYPE, Metrics

MAP_PATH: Final = "/clusterMap"
_HEALTH_SECONDS: Final = 5.0


class AdminServer:
    """Answers on sockets that are bound already."""

    def __init__(self, datanode: LocalDatanode, metrics: Metrics, map_file: Callable[[], bytes] | None = None) -> None:
        """`map_file` gives the cluster map as it is kept on disk; without it there is no such path."""
        self._datanode = datanode
        self._is_checking = False
        self._metrics = metrics
        app = web.Application()
        app.router.add_get("/metrics", self._render_metrics)
        app.router.add_get("/healthCheck", self._check_health)
        app.router.add_get("/check", self._check_disks)
        if map_file is not None:

            async def answer_map(_request: web.Request) -> web.Response:
                return web.Response(body=map_file())

            app.router.add_get(MAP_PATH, answer_map)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Listen and answer."""
        await self._runner.setup()
        for each in sockets:
            await web.SockSite(self._runner, each).start()

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _check_disks(self, _request: web.Request) -> web.Response:
        """What `ambry datanode check` says, while the disks are in use; takes as long as reading them."""
        if self._is_checking:
            return web.Response(text="a check is under way", status=409)
        self._is_checking = True
        try:
            reports = await self._datanode.check()
        except AmbryError as error:
            return web.Response(text=f"the check did not end: {error}", status=503)
        finally:
            self._is_checking = False
        return web.json_response({name: dataclasses.asdict(report) for name, report in reports.items()})

    async def _check_health(self, _request: web.Request) -> web.Response:
        """GOOD as long as the datanode answers, has room, and one of its replicas takes puts; else BAD, and 503."""
        deadline = asyncio.get_running_loop().time() + _HEALTH_SECONDS
        try:
            status = await self._datanode.status(deadline)
        except AmbryError as error:
            return web.Response(text=f"BAD: {error}", status=503)
        if not status.free_bytes:
            return web.Response(text="BAD: there is no room for puts", status=503)
        if not any(replica.is_writable for replica in status.replicas):
            return web.Response(text="BAD: no replica takes puts", status=503)
        return web.Response(text="GOOD")
