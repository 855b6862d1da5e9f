"""What a client has to know: from arguments, then from the environment, then from a profile in a file.

    # ~/.config/ambry/client.toml
    [default]
    url = ["http://a.example:1174", "http://b.example:1174"]

    [profiles.training]
    url = "https://store.example"
    token = "..."

The environment: AMBRY_URL (several with commas), AMBRY_TOKEN, AMBRY_PROFILE, AMBRY_CLIENT_CONFIG.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ambry.errors import BadConfiguration

DEFAULT_URL: Final = "http://127.0.0.1:1174"
_KEYS: Final = frozenset({"url", "token"})


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client has to know, as `Client` finds it in its arguments, the environment and its file."""

    urls: tuple[str, ...]
    token: str | None = None


def load_settings(
    environment: Mapping[str, str], url: str | Sequence[str] | None, token: str | None, profile: str | None
) -> ClientSettings:
    """The settings of a client. Raises BadConfiguration, naming what is wrong and where."""
    chosen = profile or environment.get("AMBRY_PROFILE") or None
    path = Path(environment.get("AMBRY_CLIENT_CONFIG") or Path(_home(environment), ".config/ambry/client.toml"))
    found = _profile(path, chosen)
    urls = url if url is not None else environment.get("AMBRY_URL") or found.get("url") or DEFAULT_URL
    checked = tuple(_checked(one) for one in _listed(urls) if one)
    if not checked:
        raise BadConfiguration("a client needs the URL of a frontend", field="url")
    secret = token if token is not None else environment.get("AMBRY_TOKEN") or found.get("token")
    if secret is not None and not isinstance(secret, str):
        raise BadConfiguration("a token is a text", field="token")
    return ClientSettings(checked, secret or None)


def _listed(urls: Any) -> list[str]:  # noqa: ANN401 -- from a file
    named = urls.split(",") if isinstance(urls, str) else urls
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) for one in named):
        raise BadConfiguration(f"url is a text or a list of texts, not {urls!r}", field="url")
    return [one.strip() for one in named]


def _home(environment: Mapping[str, str]) -> str:
    return environment.get("HOME") or str(Path.home())


def _profile(path: Path, name: str | None) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # noqa: PLC0415 -- only for who has a file

        document = tomllib.loads(text)
    except FileNotFoundError as error:
        if name is not None:
            raise BadConfiguration(f"{path} is not there, and so is no profile {name}", field="profile") from error
        return {}
    except (OSError, ValueError) as error:
        raise BadConfiguration(f"{path} cannot be read: {error}", field="profile") from error
    profiles = document.get("profiles", {})
    if not isinstance(profiles, dict):
        raise BadConfiguration(f"{path}: profiles is a table of tables, [profiles.NAME]", field="profile")
    table = document.get("default", {}) if name is None else profiles.get(name)
    if not isinstance(table, dict):
        raise BadConfiguration(f"{path} has no profile {name or 'default'}", field="profile")
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise BadConfiguration(f"{path} says {', '.join(unknown)}, which is not known", field="profile")
    return table


def _checked(url: str) -> str:
    message = f"a frontend is http://HOST:PORT or https://HOST:PORT, not {url!r}"
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        is_port = parts.port is None or parts.port > 0
    except ValueError as error:
        raise BadConfiguration(f"{message}: {error}", field="url") from error
    if parts.username is not None or parts.password is not None:
        # Not told again: it may be a secret.
        raise BadConfiguration("the URL of a frontend has no user and no password; a token is said apart", field="url")
    if (
        parts.scheme not in {"http", "https"} or not parts.hostname or not is_port
        or parts.path not in {"", "/"} or parts.query
    ):  # fmt: skip
        raise BadConfiguration(message, field="url")
    return f"{parts.scheme}://{parts.netloc}"
