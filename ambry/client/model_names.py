"""How models, their versions and aliases are called, and under which names a container has them. Pure.

A model is `account/container/model`, where the last may have slashes; a version of it `...@VERSION`, an alias
`...@ALIAS`, a file of it `...@VERSION/path/of/file`. docs/formats/model.md has the names in the container.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ambry.client.values import SCHEME
from ambry.errors import BadRequest

LATEST: Final = "latest"
VERSIONS: Final = ".versions/"
ALIASES: Final = ".aliases/"
CONTENT: Final = ".content/"
TOUCHED: Final = ".touched/"
TRASH: Final = ".trash/"
KEPT: Final = (VERSIONS, ALIASES, CONTENT, TOUCHED, TRASH)
"""What names of a container begin with that models need: whoever means files leaves them alone."""

_VERSION: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")
_ALIAS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DIGITS: Final = 16
_MODEL_CHARACTERS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model, and perhaps one of its versions by id or alias, and perhaps one file of that."""

    container: str
    """`account/container`."""
    model: str
    selector: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        text = f"{self.container}/{self.model}"
        if self.selector is not None:
            text += f"@{self.selector}"
        return text if self.file is None else f"{text}/{self.file}"

    @property
    def versions(self) -> str:
        """What the names of its manifests begin with."""
        return f"{self.container}/{VERSIONS}{self.model}/"

    @property
    def aliases(self) -> str:
        """What the names of its aliases begin with."""
        return f"{self.container}/{ALIASES}{self.model}/"


def parse_model(text: str) -> ModelRef:
    """A reference as people write it. Raises BadRequest."""
    named, at, rest = text.removeprefix(SCHEME).partition("@")
    parts = named.split("/", 2)
    if len(parts) != 3 or any(step in {"", ".", ".."} or step.startswith(".") for step in named.split("/")):
        raise BadRequest("a model is account/container/model, without parts that begin with a dot", field="ref")
    if len(parts[2]) > _MODEL_CHARACTERS_MAX:
        raise BadRequest(f"the name of a model has {_MODEL_CHARACTERS_MAX} characters at most", field="ref")
    selector, slash, file = rest.partition("/")
    if at and not is_version(selector):
        check_alias(selector)
    if slash and not file:
        raise BadRequest("a file of a model is account/container/model@VERSION/path", field="ref")
    return ModelRef("/".join(parts[:2]), parts[2], selector or None, file or None)


def texts_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """One text, or several. A text is a sequence of its letters too, which nobody means."""
    return (value,) if isinstance(value, str) else tuple(value)


def is_kept(name: str) -> bool:
    """Whether a name within a container is one that models need."""
    return name.startswith(KEPT)


def check_alias(text: str) -> None:
    """Raises BadRequest for what cannot be an alias."""
    if not _ALIAS.fullmatch(text) or is_version(text):
        raise BadRequest("an alias has 1 to 64 letters, digits, dots, hyphens and underscores", field="alias")


def is_version(text: str) -> bool:
    """Whether this is the id of a version."""
    return _VERSION.fullmatch(text) is not None


def is_sha256(text: object) -> bool:
    """Whether this is a SHA-256 as it stands in names: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def version_of(created_ms: int, sha256: str) -> str:
    """The id of a version: when it was made, and the beginning of its manifest's SHA-256."""
    moment = datetime.fromtimestamp(created_ms // 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%SZ}-{sha256[:_DIGITS]}"


def is_digest_of_version(version: str, sha256: str) -> bool:
    """Whether a manifest with this SHA-256 can be that version's."""
    return version.rpartition("-")[2] == sha256[:_DIGITS]
