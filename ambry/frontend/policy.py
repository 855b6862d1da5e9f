"""What a container's policy asks of uploads and of answers. Pure: values in, values or errors out."""

from typing import Final

from ambry.access.accounts import ContainerPolicy
from ambry.blob.state import NEVER
from ambry.errors import BadRequest
from ambry.frontend.answers import CACHE_SECONDS_MAX, Headers

WARNING: Final = "x-ambry-non-compliance-warning"
_UNCACHED: Final = "private, no-cache, no-store, proxy-revalidate"


def ttl_complaint(policy: ContainerPolicy, expires_at_ms: int, now_ms: int) -> str | None:
    """What a container finds wrong with a moment of expiry; None if nothing."""
    if expires_at_ms == NEVER:
        needed = policy.ttl_required or policy.ttl_max_s is not None
        return "this container wants an x-ambry-ttl, and not -1" if needed else None
    if policy.ttl_max_s is not None and expires_at_ms - now_ms > policy.ttl_max_s * 1000:
        return f"x-ambry-ttl is {policy.ttl_max_s} at most in this container"
    return None


def check_ttl(policy: ContainerPolicy, expires_at_ms: int, now_ms: int) -> Headers:
    """The headers that warn the client; none if all is well. Raises BadRequest where the container insists."""
    complaint = ttl_complaint(policy, expires_at_ms, now_ms)
    if complaint is None:
        return []
    if not policy.ttl_warn_only:
        raise BadRequest(complaint, field="x-ambry-ttl")
    return [(WARNING, complaint)]


def with_policy(headers: Headers, policy: ContainerPolicy) -> Headers:
    """Headers of a blob, of any status, as its container wants them. The same list where it wants nothing special."""
    if policy.has_plain_answers:
        return headers
    found = [_cached(name, value, policy) if name == "Cache-Control" else (name, value) for name, value in headers]
    if not policy.cacheable:
        found += [("Expires", "0"), ("Pragma", "no-cache")]
    if policy.allow_origin is not None:
        found.append(("Access-Control-Allow-Origin", policy.allow_origin))
        if policy.allow_origin != "*":
            found.append(("Vary", "Origin"))
    # Not Content-Type, which is another one where several ranges are sent.
    content_type = next((value for name, value in found if name == "x-ambry-content-type"), "")
    if content_type.partition(";")[0].strip().lower() in policy.download_types:
        found = _downloaded(found)
    return found


def _cached(name: str, value: str, policy: ContainerPolicy) -> tuple[str, str]:
    if value == "no-store":
        return name, value
    if not policy.cacheable:
        return name, _UNCACHED
    if policy.cache_ttl_s is not None:
        if value == "no-cache":
            # Read by its name, which may stand for something else soon; the container says how stale it may be.
            return name, f"max-age={policy.cache_ttl_s}"
        seconds = min(int(value.removeprefix("max-age=")), policy.cache_ttl_s, CACHE_SECONDS_MAX)
        return name, f"max-age={seconds}"
    return name, value


def _downloaded(headers: Headers) -> Headers:
    """Saved by browsers under the file's name, if it has one."""
    is_named = any(name == "Content-Disposition" for name, _ in headers)
    if not is_named:
        return [*headers, ("Content-Disposition", "attachment")]
    return [
        (name, "attachment" + value.removeprefix("inline").removeprefix("attachment"))
        if name == "Content-Disposition"
        else (name, value)
        for name, value in headers
    ]


PREFLIGHT_METHODS: Final = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
PREFLIGHT_SECONDS: Final = 86_400


def preflight_headers(policy: ContainerPolicy | None, wanted_headers: str | None) -> Headers:
    """What a browser that asks before it sends is told: nothing, where the container allows no other site."""
    headers: Headers = [("Allow", PREFLIGHT_METHODS)]
    if policy is None or policy.allow_origin is None:
        return headers
    headers += [
        ("Access-Control-Allow-Origin", policy.allow_origin),
        ("Access-Control-Allow-Methods", PREFLIGHT_METHODS),
        ("Access-Control-Max-Age", str(PREFLIGHT_SECONDS)),
    ]
    if wanted_headers is not None:
        headers.append(("Access-Control-Allow-Headers", wanted_headers))
    if policy.allow_origin != "*":
        headers.append(("Vary", "Origin"))
    return headers
