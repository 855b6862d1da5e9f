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
    named = [one.strip() for one in urls.split(",")] if isinstance(urls, str) else list(urls)
    checked = tuple(_checked(one) for one in named if one)
    if not checked:
        raise BadConfiguration("a client needs the URL of a frontend", field="url")
    secret = token if token is not None else environment.get("AMBRY_TOKEN") or found.get("token")
    if secret is not None and not isinstance(secret, str):
        raise BadConfiguration("a token is a text", field="token")
    return ClientSettings(checked, secret or None)


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
    table = document.get("default", {}) if name is None else document.get("profiles", {}).get(name)
    if not isinstance(table, dict):
        raise BadConfiguration(f"{path} has no profile {name or 'default'}", field="profile")
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise BadConfiguration(f"{path} says {', '.join(unknown)}, which is not known", field="profile")
    return table


def _checked(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"} or parts.query:
        raise BadConfiguration("a frontend is http://HOST:PORT or https://HOST:PORT", field="url")
    return f"{parts.scheme}://{parts.netloc}"
