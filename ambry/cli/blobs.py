"""`ambry put`, `get` and `stat`: blobs by id, in and out of a store over HTTP."""

import asyncio
import base64
import contextlib
import hashlib
import json
import mimetypes
import os
import stat as file_kind
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, unquote

import click

from ambry.cli.asking import TOKEN_VARIABLE, url_option
from ambry.cli.http_client import PIECE_BYTES, BlobClient
from ambry.cli.progress import Progress, progress_of
from ambry.errors import AmbryError, BadRequest
from ambry.limits import TTL_SECONDS_MAX
from ambry.quantities import parse_duration_ms

_SERVICE_ID: Final = "ambry-cli"

_url_option = url_option
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_url_option
@_json_option
@click.option("--ttl", help='How long to keep it: seconds, or a duration such as "7 d". Default: for ever.')
@click.option("--content-type", help="Type of the content. Default: guessed from the name.")
@click.option("--service-id", default=_SERVICE_ID, show_default=True, help="Who stores it.")
@click.option("--digest/--no-digest", default=True, help="Read the file first, and let the store check its SHA-256.")
@click.option("--um", "metadata", multiple=True, metavar="KEY=VALUE", help="User metadata; may be repeated.")
def put(
    files: tuple[str, ...],
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    ttl: str | None,
    content_type: str | None,
    service_id: str,
    digest: bool,  # noqa: FBT001 -- click's way of handing flags over
    metadata: tuple[str, ...],
) -> None:
    """Store each FILE ('-' is standard input) and print its id. An id is printed when the blob is on disk."""
    shared = {"x-ambry-service-id": service_id, **_ttl_header(ttl), **_metadata_headers(metadata)}

    async def put_one(client: BlobClient, file: str) -> dict[str, object]:
        with _source(file) as (source, size):
            headers = {**shared, **_content_headers(file, content_type)}
            if digest and size is not None:
                headers["Repr-Digest"] = await asyncio.to_thread(_digest, source)
            with progress_of(_label(file), as_json=as_json) as progress:
                progress.begin(size)
                blob_id = await client.put(_pieces(source, size, progress), size, headers)
                return {"file": file, "id": blob_id, "size": progress.done}

    def say(result: Mapping[str, object]) -> str:
        return str(result["id"]) if len(files) == 1 else f"{result['id']}  {result['file']}"

    _each(url, files, put_one, say, as_json=as_json)


@click.command()
@click.argument("blob_id", metavar="ID")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to; '-' is standard output.")
@_url_option
@_json_option
def get(
    blob_id: str,
    output: str,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Write blob ID to a file. The file appears whole or not at all."""

    async def get_one(client: BlobClient, one_id: str) -> dict[str, object]:
        with progress_of(_label(output), as_json=as_json) as progress, _sink(output) as write:

            def take(piece: bytes) -> None:
                write(piece)
                progress.advance(len(piece))

            size = await client.get(one_id, take, progress.begin)
        return {"id": one_id, "file": output, "size": size}

    # What goes to standard output is the blob, and nothing but the blob.
    _each(url, (blob_id,), get_one, lambda _: "", as_json=as_json and output != "-")


@click.command()
@click.argument("blob_id", metavar="ID")
@_url_option
@_json_option
def stat(
    blob_id: str,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Show size, type, times and user metadata of blob ID."""

    async def stat_one(client: BlobClient, one_id: str) -> dict[str, object]:
        return {"id": one_id, **_described(await client.stat(one_id))}

    def say(result: Mapping[str, object]) -> str:
        width = max(len(name) for name in result)
        return "\n".join(f"{name.replace('_', ' '):{width}}  {_shown(value)}" for name, value in result.items())

    _each(url, (blob_id,), stat_one, say, as_json=as_json)


def _each(
    url: str,
    names: tuple[str, ...],
    run: Callable[[BlobClient, str], Coroutine[Any, Any, dict[str, object]]],
    say: Callable[[Mapping[str, object]], str],
    *,
    as_json: bool,
) -> None:
    """Run an operation for each name, one after the other; go on after a failure, and exit with 1 at the end."""
    try:
        unopened = BlobClient(url, os.environ.get(TOKEN_VARIABLE))
    except BadRequest as error:
        raise click.BadParameter(error.message, param_hint="--url") from error

    async def run_all() -> int:
        failures = 0
        async with unopened as client:
            for name in names:
                try:
                    result = await run(client, name)
                except AmbryError as error:
                    failures += 1
                    if as_json:
                        facts = {key: str(value) for key, value in error.facts.items()}
                        failure = {"code": error.name, "message": error.message, **facts}
                        click.echo(json.dumps({"name": name, "error": failure}))
                    click.echo(f"ambry: {name}: {error}", err=True)
                    continue
                text = json.dumps(result) if as_json else say(result)
                if text:
                    click.echo(text)
        return failures

    try:
        failures = asyncio.run(run_all())
    except BrokenPipeError:
        # Whoever read our output went away; Python would complain about it once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failures = 1
    if failures:
        raise click.exceptions.Exit(1)


def _label(file: str) -> str:
    return "standard input or output" if file == "-" else Path(file).name


@contextlib.contextmanager
def _source(file: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """An open source and its size; None where only reading tells it (a pipe, a terminal)."""
    if file == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with Path(file).open("rb", buffering=0) as source:
            kind = os.fstat(source.fileno())
            yield source, kind.st_size if file_kind.S_ISREG(kind.st_mode) else None
    except OSError as error:
        raise BadRequest(f"cannot be read: {error.strerror}", field="file") from error


def _digest(source: IO[bytes]) -> str:
    """The SHA-256 of a source that can be read twice, as the header has it (RFC 9530)."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE_BYTES):
        digest.update(piece)
    source.seek(0)
    return f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"


async def _pieces(source: IO[bytes], size: int | None, progress: Progress) -> AsyncIterator[bytes]:
    """The bytes of a source, read by a thread, exactly `size` of them if that is known."""
    left = size
    while left is None or left > 0:
        piece = await asyncio.to_thread(source.read, PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if not piece:
            break
        yield piece
        progress.advance(len(piece))
        if left is not None:
            left -= len(piece)
    if left:
        raise BadRequest(f"became {left} bytes shorter while it was read", field="file")


@contextlib.contextmanager
def _sink(output: str) -> Iterator[Callable[[bytes], object]]:
    """Where to write. A regular file appears under its name only when all of it is there, and on disk."""
    path = Path(output)
    try:
        if output == "-":
            yield sys.stdout.buffer.write
            sys.stdout.buffer.flush()
        elif path.exists() and not path.is_file():
            # A device or a pipe; a folder is refused by open.
            with path.open("wb") as direct:
                yield direct.write
        else:
            partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")
            try:
                with partial.open("xb") as file:
                    yield file.write
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BadRequest(f"{output} cannot be written: {error.strerror}", field="output") from error


def _ttl_header(ttl: str | None) -> dict[str, str]:
    if ttl is None:
        return {}
    # A bare number is seconds here, as it is in the header; a duration says its unit.
    milliseconds = int(ttl) * 1000 if ttl.isascii() and ttl.isdigit() and len(ttl) < 16 else parse_duration_ms(ttl)
    if milliseconds is None or not 1000 <= milliseconds <= TTL_SECONDS_MAX * 1000:
        raise click.BadParameter(f'{ttl!r} is not a number of seconds or a duration such as "7 d"', param_hint="--ttl")
    return {"x-ambry-ttl": str(milliseconds // 1000)}


def _metadata_headers(metadata: tuple[str, ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not equals or not key.replace("-", "").replace("_", "").isalnum() or not key.isascii():
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--um")
        if value.isascii() and value.isprintable() and value == value.strip():
            headers[f"{_METADATA}{key.lower()}"] = value
        else:
            headers[f"{_ENCODED_METADATA}{key.lower()}"] = quote(value, safe="")
    return headers


def _content_headers(file: str, content_type: str | None) -> dict[str, str]:
    name = "" if file == "-" else Path(file).name
    guessed, encoding = mimetypes.guess_type(name)
    # A .tar.gz stays the archive that it is: stored with a content encoding, clients would unpack it on the way.
    headers = {"x-ambry-content-type": content_type or (guessed if guessed and not encoding else None) or _BYTES}
    if name and name.isprintable():
        headers["x-ambry-filename"] = name
    return headers


_BYTES: Final = "application/octet-stream"
_METADATA: Final = "x-ambry-um-"
_ENCODED_METADATA: Final = "x-ambry-enc-um-"
_STAT_NAMES: Final = {
    "x-ambry-blob-size": "size",
    "x-ambry-content-type": "content_type",
    "x-ambry-content-encoding": "content_encoding",
    "x-ambry-filename": "filename",
    "x-ambry-creation-time": "created",
    "x-ambry-ttl": "ttl",
    "x-ambry-service-id": "service_id",
    "x-ambry-owner-id": "owner_id",
    "x-ambry-life-version": "life_version",
    "etag": "etag",
    "repr-digest": "digest",
}


def _described(headers: Mapping[str, str]) -> dict[str, object]:
    """What the headers of a blob say, under names of ours."""
    found: dict[str, object] = {
        name: int(headers[header]) if name in {"size", "ttl"} else headers[header]
        for header, name in _STAT_NAMES.items()
        if header in headers
    }
    if found.get("ttl", -1) == -1:
        # For ever; a number that means something else than a number is no good in JSON either.
        found.pop("ttl", None)
    elif "created" in found:
        created = parsedate_to_datetime(headers["x-ambry-creation-time"])
        found["expires"] = format_datetime(created + timedelta(seconds=int(headers["x-ambry-ttl"])), usegmt=True)
    metadata: dict[str, str] = {}
    for header, value in headers.items():
        if header.startswith(_METADATA):
            metadata[header.removeprefix(_METADATA)] = value
        elif header.startswith(_ENCODED_METADATA):
            metadata[header.removeprefix(_ENCODED_METADATA)] = unquote(value)
    if metadata:
        found["user_metadata"] = metadata
    return found


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return str(value)
