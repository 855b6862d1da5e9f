"""Sockets for the wire protocol: a server, a pooled client. Thin asyncio shells around `protocol`."""
