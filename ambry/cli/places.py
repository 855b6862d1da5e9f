"""Places, `ambry://account/container/path` and local paths: what they name, and what lies below them in one order.

Names of a store and files of a folder come in the order of their names' bytes, `/` included, page by page, so that two
listings can be walked side by side. Memory: a page of names, or the names of the folders on the way to a file.
What is done with them is others' business; nothing is changed here.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from ambry.client import Client
from ambry.client.beside import is_beside
from ambry.client.folders import target_of
from ambry.client.model_names import is_kept
from ambry.client.values import SCHEME
from ambry.errors import (
    AmbryError,
    BadRequest,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    NameDeleted,
    NameExpired,
    NameNotFound,
)

GONE: Final = (BlobNotFound, BlobDeleted, BlobExpired, NameNotFound, NameDeleted, NameExpired)
"""A name or a blob that is not there, or not any more."""

_MAGIC: Final = re.compile(r"[*?\[]")
Complain: TypeAlias = Callable[[str, Exception], None]
"""Told of what is left out, and why."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A name in a container, the beginning of names if it ends with a slash, or with no path the container itself."""

    container: str
    """account/container"""
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.container}/{self.path}"

    @property
    def is_folder(self) -> bool:
        """Whether it can only be a folder, as it is written."""
        return self.path == "" or self.path.endswith("/")

    @property
    def name(self) -> str:
        """The last part: of a container its own name."""
        return (self.path or self.container).rstrip("/").rpartition("/")[2]

    def below(self, key: str) -> "Remote":
        """A name below this one."""
        return Remote(self.container, f"{self.path}{key}" if self.is_folder else f"{self.path}/{key}")

    def folder(self) -> "Remote":
        """The same as the beginning of names."""
        return self if self.is_folder else Remote(self.container, f"{self.path}/")


@dataclass(frozen=True, slots=True)
class Local:
    """A path of this machine. `text` is what was written, where a slash at the end means something."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def path(self) -> Path:
        """For those who open it."""
        return Path(self.text)

    @property
    def is_folder(self) -> bool:
        """Whether it is one, or can only be one."""
        return self.text.endswith("/") or self.path.is_dir()

    @property
    def name(self) -> str:
        """The last part, also of `.` and `..`."""
        return self.path.name or self.path.resolve().name

    def below(self, key: str) -> "Local":
        """A file below this folder. Raises BadRequest for a key that leads elsewhere."""
        return Local(str(target_of(self.path, key)))

    def folder(self) -> "Local":
        """The same as a folder."""
        return self


Place: TypeAlias = Remote | Local


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a name below a folder. `key` is the way from there; times are ms since 1970, sizes bytes."""

    key: str
    size: int
    modified_ms: int
    id: str | None = None
    """The blob, of a name in a store."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a place: a file or a name with its entry, or a folder, which has none."""

    place: Place
    entry: Entry | None = None


def parse_place(text: str) -> Place:
    """What an argument names. Raises BadRequest for a URL that names nothing."""
    if text.startswith(SCHEME):
        parts = text.removeprefix(SCHEME).split("/", 2)
        if len(parts) < 2 or not parts[0] or not parts[1]:
            raise BadRequest(f"{text}: a place in a store is {SCHEME}ACCOUNT/CONTAINER/PATH")
        return Remote(f"{parts[0]}/{parts[1]}", parts[2] if len(parts) == 3 else "")
    if "://" in text:
        raise BadRequest(f"{text}: a place is {SCHEME}ACCOUNT/CONTAINER/PATH, or a local path")
    if not text or "\0" in text:
        raise BadRequest("a local path is not empty, and has no NUL")
    return Local(text)


def is_of_models(place: Place) -> bool:
    """Whether it is a name that models need, or a folder of such names."""
    return isinstance(place, Remote) and is_kept(place.path)


# --- what is there ---------------------------------------------------------------------------------------------


def find(client: Client, place: Place) -> list[Found]:
    """What is at a place as it is written: a name, a folder, both, or nothing."""
    if isinstance(place, Local):
        return _find_local(place)
    found = []
    if not place.is_folder:
        try:
            info = client.stat(str(place))
            found.append(Found(place, Entry(place.name, info.size, info.created_ms, info.id)))
        except GONE:
            pass
    folder = place.folder()
    if folder.path == "" or next(client.list(f"{folder}"), None) is not None:
        found.append(Found(folder))
    return found


def _find_local(place: Local) -> list[Found]:
    """Raises OSError for what cannot be looked at."""
    try:
        status = place.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    if stat.S_ISDIR(status.st_mode):
        return [Found(place)]
    return [Found(place, Entry(place.name, status.st_size, status.st_mtime_ns // 1_000_000))]


def expand(client: Client, place: Place) -> Iterator[Found]:
    """What is at a place, or what a pattern matches if nothing is at the place of its letters.

    In a pattern `*`, `?` and `[...]` stand for letters of one part, `**` as a part for any number of parts, in which
    case only names and files are meant. Raises NameNotFound where nothing is, and for a pattern without a match.
    """
    is_pattern = may_be_several(place)
    found = iter(find(client, place))
    first = next(found, None)
    if first is None and is_pattern:
        found = _matches(client, place) if isinstance(place, Remote) else _matches_local(place)
        first = next(found, None)
    if first is None:
        raise NameNotFound("nothing matches the pattern" if is_pattern else "there is no such file or folder")
    yield first
    yield from found


def may_be_several(place: Place) -> bool:
    """Whether it may stand for several places."""
    return _MAGIC.search(place.path if isinstance(place, Remote) else place.text) is not None


def _matches_local(place: Local) -> Iterator[Found]:
    has_folders = "**" not in place.text.split("/")
    for text in sorted(glob.iglob(place.text, recursive=True)):  # noqa: PTH207 -- a Path would lose the slash at its end
        yield from (found for found in _find_local(Local(text)) if has_folders or found.entry is not None)


def _matches(client: Client, place: Remote) -> Iterator[Found]:
    """Part by part, as a shell does it: a folder that does not match is not listed."""
    parts = place.path.rstrip("/").split("/")
    if "**" in parts:
        fixed = "".join(f"{part}/" for part in parts[: next(i for i, part in enumerate(parts) if _MAGIC.search(part))])
        pattern = re.compile(_regex(parts))
        for listed in client.list(f"{SCHEME}{place.container}/{fixed}"):
            if pattern.fullmatch(listed.name):
                found = Remote(place.container, listed.name)
                yield Found(found, Entry(found.name, listed.size, listed.modified_ms, listed.id))
        return
    yield from _matches_below(client, Remote(place.container, ""), parts, only_folders=place.is_folder)


def _matches_below(client: Client, base: Remote, parts: Sequence[str], *, only_folders: bool) -> Iterator[Found]:
    head, *tail = parts
    magic = _MAGIC.search(head)
    if magic is None and tail:
        yield from _matches_below(client, base.below(f"{head}/"), tail, only_folders=only_folders)
        return
    pattern = glob_regex(head)
    beginning = head if magic is None else head[: magic.start()]
    for listed in client.list(f"{base}{beginning}", delimiter="/"):
        name = listed.name[len(base.path) :]
        if not pattern.fullmatch(name.rstrip("/")):
            continue
        place = Remote(base.container, listed.name)
        if tail and listed.is_directory:
            yield from _matches_below(client, place, tail, only_folders=only_folders)
        elif not tail and listed.is_directory:
            yield Found(place)
        elif not tail and not only_folders:
            yield Found(place, Entry(name, listed.size, listed.modified_ms, listed.id))


def _regex(parts: Sequence[str]) -> str:
    """A pattern as a regular expression; fnmatch's own would let `*` run across slashes."""
    pieces = []
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            pieces.append(".*" if is_last else "(?:.*/)?")
        else:
            pieces.append(_part_regex(part) + ("" if is_last else "/"))
    return "(?s:" + "".join(pieces) + ")"


def path_regex(pattern: str) -> str:
    """A pattern with slashes as a regular expression."""
    return _regex(pattern.split("/"))


def glob_regex(part: str) -> re.Pattern[str]:
    """A pattern without slashes as a regular expression."""
    return re.compile(f"(?s:{_part_regex(part)})")


def _part_regex(part: str) -> str:
    pieces, at = [], 0
    while at < len(part):
        letter = part[at]
        end = part.find("]", at + 3 if part[at + 1 : at + 2] == "!" else at + 2) if letter == "[" else -1
        at += 1
        if letter in "*?":
            pieces.append("[^/]*" if letter == "*" else "[^/]")
        elif end > 0:
            inside = part[at:end].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            pieces.append(f"(?!/)[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
            at = end + 1
        else:
            pieces.append(re.escape(letter))
    return "".join(pieces)


# --- what lies below -------------------------------------------------------------------------------------------


def entries(client: Client, folder: Place, complain: Complain) -> Iterator[Entry]:
    """All names or files below a folder, in the order of their keys' bytes; `complain` hears of what is left out."""
    if isinstance(folder, Local):
        yield from _walk(folder.path, complain)
        return
    beginning = folder.folder()
    for listed in client.list(str(beginning)):
        yield Entry(listed.name[len(beginning.path) :], listed.size, listed.modified_ms, listed.id)


def children(client: Client, folder: Place, complain: Complain) -> Iterator[Found]:
    """What lies directly in a folder, names, files and folders."""
    if isinstance(folder, Local):
        for key in _listed(folder.path, "", complain):
            if key.endswith("/"):
                yield Found(folder.below(key[:-1]))
            elif (entry := _entry(folder.path, key, complain)) is not None:
                yield Found(folder.below(key), entry)
        return
    beginning = folder.folder()
    for listed in client.list(str(beginning), delimiter="/"):
        place = Remote(beginning.container, listed.name)
        entry = None
        if not listed.is_directory:
            key = listed.name[len(beginning.path) :]
            entry = Entry(key, listed.size, listed.modified_ms, listed.id)
        yield Found(place, entry)


def _walk(root: Path, complain: Complain) -> Iterator[Entry]:
    """Files below a folder. Not by recursion: a path may have more parts than Python has frames."""
    waiting = [iter(_listed(root, "", complain))]
    while waiting:
        key = next(waiting[-1], None)
        if key is None:
            waiting.pop()
        elif key.endswith("/"):
            waiting.append(iter(_listed(root, key, complain)))
        elif (entry := _entry(root, key, complain)) is not None:
            yield entry


def _listed(root: Path, prefix: str, complain: Complain) -> list[str]:
    """Keys of what is in a folder; those of folders have a slash at the end, and so sort as names below them do."""
    try:
        with os.scandir(root / prefix) as found:
            keys = [f"{prefix}{one.name}/" if one.is_dir(follow_symlinks=False) else prefix + one.name for one in found]
    except OSError as error:
        complain(str(root / prefix), error)
        return []
    good = []
    for key in keys:
        try:
            key.encode("utf-8")
        except UnicodeEncodeError:
            name = os.fsencode(key).decode("utf-8", "backslashreplace")
            complain(f"{root}/{name}", BadRequest("its name is not UTF-8"))
            continue
        good.append(key)
    good.sort()
    return good


def _entry(root: Path, key: str, complain: Complain) -> Entry | None:
    """A file, or the file behind a link; None for anything else."""
    if is_beside(key.rpartition("/")[2]):
        return None
    path = f"{root}/{key}"
    try:
        # A Path keeps each of its parts in a table of the interpreter: with a million files that is memory, and time.
        status = os.stat(path)  # noqa: PTH116 -- as the line above says
    except OSError as error:
        complain(path, error)
        return None
    if not stat.S_ISREG(status.st_mode):
        what = "a link to a folder is not followed" if stat.S_ISDIR(status.st_mode) else "it is no regular file"
        complain(path, BadRequest(what))
        return None
    return Entry(key, status.st_size, status.st_mtime_ns // 1_000_000)


# --- local targets ---------------------------------------------------------------------------------------------


class Folders:
    """Folders for files that are written below a root. Links are not followed: a name must not lead out of the root."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def make(self, root: Path, path: Path) -> None:
        """The folder of a file below a root. Raises OSError, and BadRequest where a link stands in the way."""
        parent = str(path.parent)
        if parent in self._known:
            return
        step = root
        step.mkdir(parents=True, exist_ok=True)
        for part in path.parent.relative_to(root).parts:
            step /= part
            if step.is_symlink():
                raise BadRequest(f"{step} is a link, and nothing is written through it")
            step.mkdir(exist_ok=True)
        # A set of folders, not of files; forgotten now and then, so that it stays small.
        if len(self._known) >= 10_000:
            self._known.clear()
        self._known.add(parent)


def explained(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return str(error) if isinstance(error, AmbryError) else f"{type(error).__name__}: {error}"
