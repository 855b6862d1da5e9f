"""The methods of a client for models: what they take and give. What they do is models.py's."""

import abc
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ambry.client.progress import Progress

if TYPE_CHECKING:
    from ambry.client.contents import Collected
    from ambry.client.model_manifest import ModelManifest
    from ambry.client.model_pull import Pulled
    from ambry.client.models import ModelDiff, Models, ModelVersion, Pushed, Verified


class ModelMethods(abc.ABC):
    """A part of `Client`, which describes the arguments that are not described here."""

    @abc.abstractmethod
    def _models(self) -> "Models":
        """The models that the client can see."""

    def push_model(
        self,
        folder: str | os.PathLike[str],
        model: str,
        *,
        aliases: str | Sequence[str] = ("latest",),
        metadata: Mapping[str, str | int | float | bool] | None = None,
        lineage: Mapping[str, str] | None = None,
        ignore_patterns: str | Sequence[str] | None = None,
        progress: Progress = None,
    ) -> "Pushed":
        """Store the files of a folder as a new version of a model.

        The version appears when everything it needs is stored; then the aliases move to it. What the store has already
        is not sent again, of large files that changed a little only what is new (with `ambry[models]`). A push that
        broke off is made again; it finds what was sent.

        Args:
            folder: The folder; links to files are followed.
            aliases: Names that stand for this version from then on; one, or several.
            metadata: Texts, numbers and truth values that are kept in the manifest.
            lineage: Where it comes from: `dataset`, `parent`, `code`, or what you like.
            ignore_patterns: Files that are left out, as `*.tmp` or `logs/*`; one pattern, or several.

        Raises:
            FileChanged: A file changed while it was read; there is no new version.
            BadRequest: What no model can have: links to folders, files that are none, names that are not UTF-8; or
                nothing.
            OSError: A file cannot be read.
        """
        return self._models().push(
            folder, model,
            aliases=aliases, metadata=metadata, lineage=lineage, ignore_patterns=ignore_patterns, progress=progress,
        )  # fmt: skip

    def pull_model(
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
    ) -> "Pulled":
        """Have the files of a model in a folder; by default in one of the cache, where they are not to be changed.

        Files come by the cache and are clones of what is there, or links to it, which are read-only. What is there
        already is not loaded again.

        Args:
            model: `account/container/model`, with `@VERSION` or `@ALIAS` (`@latest` without one); with `/PATH` behind
                it that file alone.
            folder: Where they go; it is made if it is not there.
            allow_patterns: Files to have, as `*.safetensors`, or several such patterns; default all.
            ignore_patterns: Files to leave out; one pattern, or several.
            offline: Whether nobody but the cache is asked; default whether AMBRY_OFFLINE is 1.
            verify: Whether all that is there already is read, and loaded again if it does not have its SHA-256.
            copies: Whether they are files of their own, which may be written to.

        Raises:
            NameNotFound: No such model, version, alias or file.
            NotCached: Offline, and the cache lacks something.
            ModelDamaged: A manifest or content that does not have its SHA-256, or is not there.
            OSError: A file cannot be written, or the disk is full.
        """
        return self._models().pull(
            model, folder,
            allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, offline=offline, verify=verify,
            copies=copies, progress=progress,
        )  # fmt: skip

    def verify_model(
        self, model: str, folder: str | os.PathLike[str] | None = None, *, reads: bool = False
    ) -> "Verified":
        """Whether the store has all content of a version, or, with a folder, whether that has its files.

        Args:
            folder: A folder whose files are read and compared by SHA-256; None: the store is asked.
            reads: Whether all bytes are read from the store and must have their SHA-256.

        Returns:
            What was verified, and a line for each thing that is wrong; what is wrong is not raised.

        Raises:
            NameNotFound: No such model, version or alias; NotCached with AMBRY_OFFLINE if the cache lacks it.
            ModelDamaged: A manifest that does not have its SHA-256.
        """
        return self._models().verify(model, folder, reads=reads)

    def diff_models(self, old: str, new: str) -> "ModelDiff":
        """What differs between two versions, by their manifests alone.

        Args:
            old: `account/container/model@VERSION`, or with an alias.
            new: Another one, of the same model or not.

        Raises:
            NameNotFound: No such model, version or alias; NotCached with AMBRY_OFFLINE if the cache lacks it.
            ModelDamaged: A manifest that does not have its SHA-256.
        """
        return self._models().diff(old, new)

    def list_models(self, container: str) -> Sequence[str]:
        """Models of a container.

        Args:
            container: `account/container`; with more behind it, models that begin with that.

        Returns:
            `account/container/model` of each, in order.
        """
        return self._models().models(container)

    def list_versions(self, model: str) -> Sequence["ModelVersion"]:
        """Versions of a model, oldest first, with their aliases; none for a model that is not there.

        Raises:
            ModelDamaged: An alias that does not say what it stands for.
        """
        return self._models().versions(model)

    def read_manifest(self, model: str) -> "ModelManifest":
        """What a version is made of: files, sizes, SHA-256, metadata, lineage (docs/formats/model.md).

        Raises:
            NameNotFound: No such model, version or alias; NotCached with AMBRY_OFFLINE if the cache lacks it.
            ModelDamaged: A manifest that does not have its SHA-256.
        """
        return self._models().manifest(model)

    def set_alias(self, model: str, alias: str, *, expected: str | None = "*") -> "ModelVersion":
        """Let an alias stand for a version, by compare-and-swap.

        Args:
            model: `account/container/model@VERSION`, or with another alias.
            alias: 1 to 64 letters, digits, `.`, `_`, `-`.
            expected: The version that it must stand for until then, None if there must be no such alias, `*` for
                whatever there is.

        Raises:
            PreconditionFailed: It stands for another one.
            NameNotFound: No such model, version or alias.
            ModelDamaged: A manifest that does not have its SHA-256.
        """
        return self._models().set_alias(model, alias, expected=expected)

    def delete_alias(self, model: str, alias: str) -> None:
        """Take an alias of a model away; what it stood for stays.

        Args:
            alias: Its name.

        Raises:
            NameNotFound: There never was one.
        """
        self._models().delete_alias(model, alias)

    def delete_model(self, model: str) -> Sequence[str]:
        """Delete one version or all of a model, and the aliases of what is gone.

        Content that no version needs any more goes with `collect_content`.

        Args:
            model: `account/container/model@VERSION`, or `account/container/model` for all versions.

        Returns:
            The versions that were deleted.

        Raises:
            NameNotFound: There never was such a version.
            BadRequest: An alias: a version is deleted by its id.
        """
        return self._models().delete(model)

    def collect_content(self, container: str, *, is_dry: bool = False) -> "Collected":
        """Remove content that no version names and nobody stored or reused for 7 days. Pushes may be under way.

        Args:
            container: `account/container`.
            is_dry: Whether it is counted and not removed.

        Raises:
            ModelDamaged: A manifest that cannot be read; nothing is collected while it is there.
        """
        return self._models().collect(container, is_dry=is_dry)
