"""What may be a secret in a request: it stays with its host."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"(^|[-_.])(authorization|auth|api-?key|key|token|secret|password|credentials?|cookie)($|[-_.])"
)
_NO_SECRETS = frozenset(("idempotency-key", "x-idempotency-key", "x-smg-routing-key"))
_PLACEHOLDERS = frozenset(
    ("", "-", "x", "empty", "none", "null", "dummy", "fake", "unused", "no-key", "not-needed")
)
"""What people write where a client wants a key and the engine does not, in lower case."""


def is_secret(name: str) -> bool:
    """Whether the value of a header, or of a parameter, of this name may be one."""
    name = name.lower()
    return name not in _NO_SECRETS and _SECRET.search(name) is not None


def is_placeholder(value: str) -> bool:
    """Whether a key is none, but stands where a client wants one."""
    return value.lower().removeprefix("bearer").strip() in _PLACEHOLDERS


def without_secrets(query: bytes) -> bytes:
    """A query without the parameters that may be secret."""
    pairs = query.split(b"&")
    kept = [pair for pair in pairs if not is_secret(pair.partition(b"=")[0].decode("latin-1"))]
    return b"&".join(kept)
