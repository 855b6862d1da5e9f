"""Models: versions that appear whole or not at all, and aliases that move by compare-and-swap.

A version is one immutable blob, its manifest; what it names is put before, so whoever sees it has all of it. An alias
is a name whose blob says which version it stands for. docs/client.md has the story, docs/formats/model.md the bytes.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ambry.client.cache import Cache, file_digest, open_cache
from ambry.client.contents import GONE, KEPT_S, KEPT_S_MIN, Collected, Contents, verify_all
from ambry.client.folders import in_order
from ambry.client.model_manifest import ModelFile, ModelManifest, Value, decode_manifest, encode_manifest
from ambry.client.model_names import (
    LATEST,
    VERSIONS,
    ModelRef,
    check_alias,
    is_digest_of_version,
    is_version,
    parse_model,
    texts_of,
    version_of,
)
from ambry.client.model_pull import Pull, Pulled, is_same, source_of
from ambry.client.model_push import Push, look_at, matches
from ambry.client.progress import Meter, Progress
from ambry.client.session import Session
from ambry.client.transfer import Source
from ambry.client.values import SCHEME, ListedName
from ambry.clock import SystemClock
from ambry.errors import BadRequest, ModelDamaged, NameExists, NameNotFound, NotCached, PreconditionFailed

if TYPE_CHECKING:
    from ambry.client.client import Client

_ATTEMPTS: Final = 20
ANY: Final = "*"
"""Of an alias: whatever it stands for."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a model. `created_ms` is ms since 1970, by the clock of the store."""

    model: str
    """`account/container/model`."""
    version: str
    created_ms: int
    aliases: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """What names it in calls."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class Pushed:
    """A version that was pushed; sizes in bytes."""

    model: str
    version: str
    files: int
    size: int
    sent_bytes: int
    """What the store did not have yet."""

    @property
    def ref(self) -> str:
        """What names it in calls."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """What differs between two versions: paths, in order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    new_bytes: int
    """Bytes of the second one's content that the first one does not have."""
    metadata: tuple[str, ...]
    """Keys of metadata and lineage whose values differ."""

    @property
    def is_empty(self) -> bool:
        """Whether they are equal."""
        return not (self.added or self.removed or self.changed or self.metadata)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified of a version, and what is wrong with it: a line each."""

    version: str
    files: int
    size: int
    problems: tuple[str, ...]


class Models:
    """The models in a store. Each call may wait for many requests; several threads may use it."""

    def __init__(self, client: "Client", session: Session, threads: int, cache: Cache | None = None) -> None:
        self._client = client
        self._session = session
        self._threads = threads
        self._cache = cache if cache is not None else open_cache(os.environ)

    # --- push --------------------------------------------------------------------------------------------------

    def push(
        self,
        folder: str | os.PathLike[str],
        model: str,
        *,
        aliases: str | Sequence[str] = (LATEST,),
        metadata: Mapping[str, Value] | None = None,
        lineage: Mapping[str, str] | None = None,
        ignore_patterns: str | Sequence[str] | None = None,
        progress: Progress = None,
    ) -> Pushed:
        """See Client.push_model."""
        ref = _model(model)
        named = texts_of(aliases)
        for alias in named:
            check_alias(alias)
        found = look_at(Path(folder), None if ignore_patterns is None else texts_of(ignore_patterns))
        if not found.files and not found.empty_folders:
            raise BadRequest(f"{folder} has nothing that could be a model", field="folder")
        contents = Contents(self._client, ref.container)
        size = sum(path.stat().st_size for _, path in found.files)
        with Meter(progress, ref.model, size) as meter:
            push = Push(
                self._client, self._session, contents, self._newest(ref), meter, time.monotonic, self._threads,
                self._cache.upload_path,
            )  # fmt: skip
            files = push.store(found.files)
            push.renew()
            manifest = ModelManifest(
                ref.model, SystemClock().now_ms(), files, found.empty_folders, dict(metadata or {}), dict(lineage or {})
            )
            data = encode_manifest(manifest)
            decode_manifest(data)
            version = self._publish(ref, manifest.created_ms, data)
        for alias in named:
            self._move(ref, alias, version, ANY)
        return Pushed(f"{ref.container}/{ref.model}", version, len(files), manifest.size, push.sent_bytes + len(data))

    def _publish(self, ref: ModelRef, created_ms: int, data: bytes) -> str:
        digest = sha256(data)
        version = version_of(created_ms, digest.hexdigest())
        # The same name is the same bytes: an earlier attempt, whose answer was lost.
        with contextlib.suppress(PreconditionFailed, NameExists):
            self._client.put(
                data, f"{ref.versions}{version}", if_none_match=True, content_type="application/json",
                sha256=digest.digest(),
            )  # fmt: skip
        return version

    def _newest(self, ref: ModelRef) -> ModelManifest | None:
        """The version that was made last: what a push resembles most."""
        listed = self._listed(ref)
        with contextlib.suppress(ModelDamaged, *GONE):
            return self._manifest(ref, listed[-1].version) if listed else None
        return None

    # --- look --------------------------------------------------------------------------------------------------

    def versions(self, model: str) -> list[ModelVersion]:
        """See Client.list_versions."""
        ref = _model(model)
        listed = self._listed(ref)
        names: dict[str, list[str]] = {}
        for alias, version in self.aliases(model).items():
            names.setdefault(version, []).append(alias)
        return [
            ModelVersion(one.model, one.version, one.created_ms, tuple(sorted(names.get(one.version, ()))))
            for one in listed
        ]

    def _listed(self, ref: ModelRef) -> list[ModelVersion]:
        found = [
            ModelVersion(f"{ref.container}/{ref.model}", one.name.rpartition("/")[2], one.modified_ms)
            for one in self._client.list(ref.versions, delimiter="/")
            if not one.is_directory and is_version(one.name.rpartition("/")[2])
        ]
        return sorted(found, key=lambda one: (one.version.partition("-")[0], one.created_ms, one.version))

    def models(self, container: str) -> list[str]:
        """Models of `account/container`, those that begin with what follows it."""
        base, prefix = _container(container)
        found = {
            one.name.removeprefix(VERSIONS).rpartition("/")[0]
            for one in self._client.list(f"{base}/{VERSIONS}{prefix}")
        }
        return [f"{base}/{name}" for name in sorted(found)]

    def aliases(self, model: str) -> dict[str, str]:
        """Aliases of a model and the versions that they stand for. Raises ModelDamaged."""
        ref = _model(model)
        stated = {alias: self._alias(ref, alias) for alias in self._alias_names(ref)}
        return {alias: version for alias, version in stated.items() if version is not None}

    def _alias_names(self, ref: ModelRef) -> list[str]:
        listed = self._client.list(ref.aliases, delimiter="/")
        return [one.name.rpartition("/")[2] for one in listed if not one.is_directory]

    def resolve(self, model: str, *, offline: bool | None = None) -> ModelRef:
        """A reference with the id of its version; `offline` None: as the environment says.

        Raises NameNotFound, NotCached.
        """
        ref = parse_model(model)
        selector = ref.selector or LATEST
        if is_version(selector):
            return ref
        record = f"{ref.container}/{ref.model}@{selector}"
        if _is_offline(offline=offline):
            known = self._cache.recall(record)
            if known is None or not is_version(known.decode("ascii", "replace")):
                raise NotCached("the cache does not know what the alias stands for", name=record)
            return ModelRef(ref.container, ref.model, known.decode(), ref.file)
        version = self._alias(ref, selector)
        if version is None:
            raise NameNotFound(f"{record} is not there", name=record)
        if self._cache.recall(record) != version.encode():
            self._cache.remember(record, version.encode())
        return ModelRef(ref.container, ref.model, version, ref.file)

    def manifest(self, model: str, *, offline: bool | None = None) -> ModelManifest:
        """What a version is made of; `offline` as of `resolve`. Raises NameNotFound, NotCached, ModelDamaged."""
        ref = self.resolve(model, offline=offline)
        assert ref.selector is not None
        return self._manifest(ref, ref.selector, offline=_is_offline(offline=offline))

    def _manifest(self, ref: ModelRef, version: str, *, offline: bool = False) -> ModelManifest:
        """From the cache if it is there and right: the id of a version has its manifest's digest."""
        name = f"{ref.versions}{version}"
        known = self._cache.recall(name)
        if known is not None and is_digest_of_version(version, sha256(known).hexdigest()):
            return decode_manifest(known)
        if offline:
            raise NotCached("the cache does not have the manifest", name=name)
        try:
            data = self._client.get(name)
        except GONE as error:
            raise NameNotFound(f"{ref.container}/{ref.model}@{version} is not there", name=name) from error
        if not is_digest_of_version(version, sha256(data).hexdigest()):
            raise ModelDamaged("the manifest does not have its SHA-256", name=name)
        manifest = decode_manifest(data)
        self._cache.remember(name, data)
        return manifest

    # --- pull --------------------------------------------------------------------------------------------------

    def pull(
        self,
        model: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        allow_patterns: str | Sequence[str] | None = None,
        ignore_patterns: str | Sequence[str] | None = None,
        offline: bool | None = None,
        verify: bool = False,
        copies: bool = False,
        progress: Progress = None,
    ) -> Pulled:
        """See Client.pull_model."""
        is_offline = _is_offline(offline=offline)
        ref = self.resolve(model, offline=is_offline)
        assert ref.selector is not None
        manifest = self._manifest(ref, ref.selector, offline=is_offline)
        allow = None if allow_patterns is None else texts_of(allow_patterns)
        ignore = None if ignore_patterns is None else texts_of(ignore_patterns)
        files = [file for file in manifest.files if matches(file.path, allow, ignore)]
        if ref.file is not None:
            files = [file for file in files if file.path == ref.file]
            if not files:
                raise NameNotFound(f"{ref} is not there", name=ref.file)
        empty = [path for path in manifest.empty_folders if matches(path, allow, ignore)]
        target = Path(folder) if folder is not None else self._cache.snapshot(ref.selector)
        meter = Meter(progress, ref.model, sum({file.sha256: file.size for file in files}.values()))
        contents = None if is_offline else Contents(self._client, ref.container)
        with meter, self._cache.in_use():
            pull = Pull(self._session, contents, self._cache, meter, self._threads, verify=verify)
            pull.load(files)
            target.mkdir(parents=True, exist_ok=True)
            pull.fill(target, files, empty, copies=copies)
        if pull.loaded_bytes and self._cache.is_too_large():
            self._cache.prune(waits=False)
        names = tuple(file.path for file in files)
        return Pulled(target, ref.selector, names, sum(file.size for file in files), pull.loaded_bytes)

    def find_file(self, model: str) -> Path | Source:
        """Where a file, `...@VERSION/path`, can be read: in the cache, else in the store.

        Raises NameNotFound, NotCached.
        """
        ref = self.resolve(model)
        manifest = self.manifest(str(ref))
        for file in manifest.files:
            if file.path == ref.file:
                found = self._cache.find(file.sha256, file.size)
                if found is None and _is_offline():
                    raise NotCached("the cache lacks the file", name=str(ref))
                return found or source_of(Contents(self._client, ref.container), file.pieces, file.sha256)
        raise NameNotFound(f"{ref} is not there", name=str(ref))

    # --- verify, compare ---------------------------------------------------------------------------------------

    def verify(self, model: str, folder: str | os.PathLike[str] | None = None, *, reads: bool = False) -> Verified:
        """See Client.verify_model."""
        # Whether the store has all of it is a question to the store, whatever the environment says.
        is_offline = folder is not None and _is_offline()
        ref = self.resolve(model, offline=is_offline)
        assert ref.selector is not None
        manifest = self._manifest(ref, ref.selector, offline=is_offline)
        problems: list[str] = []
        if folder is not None:
            for file in manifest.files:
                problems += _problems_of(Path(folder, file.path), file)
        else:
            contents = Contents(self._client, ref.container)
            missing = frozenset(verify_all(contents, sorted(manifest.contents), self._threads))
            for file in manifest.files:
                problems += [f"{file.path}: content {digest} is missing" for digest in sorted(file.contents & missing)]
            if reads:
                whole = [file for file in manifest.files if not file.contents & missing]
                with contextlib.closing(
                    in_order(self._threads, lambda one: (one, self._reads(contents, one)), whole)
                ) as checked:
                    problems += [f"{file.path}: {problem}" for file, problem in checked if problem is not None]
        return Verified(ref.selector, len(manifest.files), manifest.size, tuple(problems))

    def _reads(self, contents: Contents, file: ModelFile) -> str | None:
        try:
            return None if is_same(self._session, contents, file) else "does not have its SHA-256"
        except ModelDamaged as error:
            return error.message

    def diff(self, old: str, new: str) -> ModelDiff:
        """See Client.diff_models."""
        before, after = self.manifest(old), self.manifest(new)
        was = {file.path: file for file in before.files}
        now = {file.path: file for file in after.files}
        both = sorted(was.keys() & now.keys())
        changed = [path for path in both if _is_changed(was[path], now[path])]
        known = before.contents | {file.sha256 for file in before.files}
        fresh: dict[tuple[str, int], int] = {}
        for file in after.files:
            for piece in file.pieces:
                if piece.content not in known and file.sha256 not in known:
                    fresh[piece.content, piece.offset] = piece.size
        said = [
            {**one.metadata, **{f"lineage.{key}": text for key, text in one.lineage.items()}} for one in (before, after)
        ]
        keys = sorted(key for key in said[0].keys() | said[1].keys() if said[0].get(key) != said[1].get(key))
        return ModelDiff(
            added=tuple(sorted(now.keys() - was.keys())),
            removed=tuple(sorted(was.keys() - now.keys())),
            changed=tuple(changed),
            same=tuple(path for path in both if path not in set(changed)),
            new_bytes=sum(fresh.values()),
            metadata=tuple(keys),
        )

    # --- aliases, deleting -------------------------------------------------------------------------------------

    def set_alias(self, model: str, alias: str, *, expected: str | None = ANY) -> ModelVersion:
        """See Client.set_alias."""
        ref = self.resolve(model, offline=False)
        assert ref.selector is not None
        check_alias(alias)
        self._manifest(ref, ref.selector)
        self._move(ref, alias, ref.selector, expected)
        return ModelVersion(f"{ref.container}/{ref.model}", ref.selector, 0, (alias,))

    def delete_alias(self, model: str, alias: str) -> None:
        """Take an alias away. Raises NameNotFound if there is none."""
        check_alias(alias)
        self._client.delete(f"{_model(model).aliases}{alias}")

    def _alias(self, ref: ModelRef, alias: str) -> str | None:
        """The version that an alias stands for, None if there is none. Raises ModelDamaged."""
        version, blob_id = self._stated(ref, alias)
        if version is None and blob_id is not None:
            name = f"{ref.aliases}{alias}"
            raise ModelDamaged(
                f"the alias {alias} does not say what it stands for; set it anew or delete it", name=name
            )
        return version

    def _stated(self, ref: ModelRef, alias: str) -> tuple[str | None, str | None]:
        """The version that an alias stands for, None if it is damaged, and the blob that says so, None without one.

        Whoever replaces or deletes an alias asks this: that is how a damaged one is mended.
        """
        try:
            info = self._client.stat(f"{ref.aliases}{alias}")
        except GONE:
            return None, None
        version = info.metadata.get("version", "")
        return version if is_version(version) else None, info.id

    def _move(self, ref: ModelRef, alias: str, version: str, expected: str | None) -> None:
        """Compare and swap; with ANY again until nobody else was faster. Raises PreconditionFailed."""
        name = f"{ref.aliases}{alias}"
        data = json.dumps({"version": version}).encode()
        for _ in range(_ATTEMPTS):
            current, blob_id = self._stated(ref, alias)
            if current == version:
                break
            is_damaged = current is None and blob_id is not None
            if expected != ANY and (is_damaged or expected != current):
                stated = "nothing that is a version" if is_damaged else current or "nothing"
                raise PreconditionFailed(f"{alias} stands for {stated}", name=name)
            with contextlib.suppress(PreconditionFailed, NameExists):
                self._client.put(
                    data, name, if_match=blob_id, if_none_match=blob_id is None, metadata={"version": version},
                    content_type="application/json",
                )  # fmt: skip
                break
        else:
            raise PreconditionFailed(f"{alias} is moved by others all the time", name=name)
        # A version may have been deleted meanwhile, by somebody who could not see this alias yet.
        if not self._client.exists(f"{ref.versions}{version}"):
            self._drop_alias(ref, alias, version)
            raise NameNotFound(f"{ref.container}/{ref.model}@{version} is not there", name=name)

    def _drop_alias(self, ref: ModelRef, alias: str, version: str | None) -> None:
        """Take an alias away if it stands for this version; None: if it is damaged."""
        current, blob_id = self._stated(ref, alias)
        if current == version and blob_id is not None:
            with contextlib.suppress(PreconditionFailed, *GONE):
                self._client.delete(f"{ref.aliases}{alias}", if_match=blob_id)

    def delete(self, model: str) -> list[str]:
        """See Client.delete_model."""
        ref = parse_model(model)
        versions = [one.version for one in self._listed(ref)] if ref.selector is None else [ref.selector]
        if ref.selector is not None and not is_version(ref.selector):
            raise BadRequest("a version is deleted by its id; an alias is taken away", field="model")
        for version in versions:
            try:
                self._client.delete(f"{ref.versions}{version}")
            except GONE:
                if ref.selector is not None:
                    raise
        # After the manifests: whoever sets an alias looks for its manifest afterwards.
        for alias in self._alias_names(ref):
            stated, _ = self._stated(ref, alias)
            if stated in versions or (stated is None and ref.selector is None):
                self._drop_alias(ref, alias, stated)
        return versions

    def collect(self, container: str, *, kept_s: int = KEPT_S, is_dry: bool = False) -> Collected:
        """See Client.collect_content."""
        base, prefix = _container(container)
        if prefix or kept_s < KEPT_S_MIN:
            raise BadRequest("content is collected in a whole container, after a day at least", field="container")
        contents = Contents(self._client, base)
        return contents.collect(lambda: self.used(base), kept_s=kept_s, threads=self._threads, is_dry=is_dry)

    def used(self, container: str) -> frozenset[str]:
        """All content that manifests of a container name. Raises ModelDamaged for one that cannot be read."""

        def contents_of(one: ListedName) -> frozenset[str]:
            model, _, version = one.name.removeprefix(VERSIONS).rpartition("/")
            if not is_version(version):
                raise ModelDamaged("not a version of a model; nothing is collected while it is there", name=one.name)
            try:
                return self._manifest(ModelRef(container, model), version).contents
            except NameNotFound:
                return frozenset()

        listed = self._client.list(f"{container}/{VERSIONS}")
        with contextlib.closing(in_order(self._threads, contents_of, listed)) as found:
            return frozenset[str]().union(*found)


def _is_offline(*, offline: bool | None = None) -> bool:
    """Whether nobody but the cache is asked: as the caller says, else the environment."""
    return os.environ.get("AMBRY_OFFLINE", "0") not in {"", "0"} if offline is None else offline


def _model(text: str) -> ModelRef:
    """A model without a version."""
    ref = parse_model(text)
    if ref.selector is not None:
        raise BadRequest("a model, without a version", field="model")
    return ref


def _container(text: str) -> tuple[str, str]:
    """`account/container`, and what follows."""
    parts = text.removeprefix(SCHEME).rstrip("/").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise BadRequest("a container is account/container", field="container")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""


def _is_changed(old: ModelFile, new: ModelFile) -> bool:
    return (old.sha256, old.is_executable) != (new.sha256, new.is_executable)


def _problems_of(path: Path, file: ModelFile) -> list[str]:
    try:
        found = path.stat()
    except OSError as error:
        return [f"{file.path}: {error.strerror}"]
    if found.st_size != file.size:
        return [f"{file.path}: has {found.st_size} bytes, not {file.size}"]
    return [] if file_digest(path) == file.sha256 else [f"{file.path}: does not have its SHA-256"]
