"""Values as JSON holds them: laws, infinities, and text without secrets."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, is_dataclass
from typing import Any

from concur_agents._text import printable
from concur_agents.core import Law, make_law


def describe_law(law: Law) -> dict[str, Any]:
    """A law as JSON, for the header of a recording; so are the laws inside it."""
    config: dict[str, Any] | None = None
    thing: object = law  # because a protocol does not say that it is a dataclass
    if is_dataclass(thing):
        values = {item.name: getattr(thing, item.name) for item in fields(thing)}
        config = {
            name: describe_law(value) if isinstance(value, Law) else plain(value)
            for name, value in values.items()
        }
        try:
            json.dumps(config)
        except (TypeError, ValueError):
            config = None  # a law of the caller's own
    return {"name": law.name, "config": config}


def law_of(described: dict[str, Any]) -> Law:
    """The law that `describe_law` described.

    Raises:
        KeyError, TypeError, ValueError: this version has no such law, or it has other options.
    """
    config = {
        name: law_of(value) if isinstance(value, dict) else value
        for name, value in numbers(described["config"] or {}).items()
    }
    return make_law(described["name"], **config)


_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\")]+")
_KEYS = re.compile(
    r"(?i)\b(bearer\s+|api[-_]?key\W{1,6}|password\W{1,6}|sk-|hf_|gh[pousr]_|AKIA|AIza)"
    r"[\w.~+/-]{4,}=*"
)


_PEM = re.compile(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)")
_COOKIE = re.compile(r"(?i)(cookie['\"]?\s*[:=,]\s*b?['\"]?)[^\r\n'\"]+")
_NAMED = re.compile(
    r"(?i)(authorization|api[-_ ]?key|access[-_]?key|secret(?:[-_ ]?(?:access[-_]?)?key)?|token"
    r"|passw(?:or)?d|passphrase|pwd|credentials?|signature|\bsig|(?<=[a-z][-_])key)"
    r"(['\"]?\s*(?:[:=]|,\s*(?=b?['\"]))\s*(?:b?['\"])?|\s+['\"]|\s+is\s+(?=[^\s\d]*\d))"
    r"(?:(?:bearer|basic|digest|token|negotiate)\s+)?[^\s'\",;&(){}\[\]<>]{4,}"
)
"""A name, and what stands between it and its value. Several tokens are a count, and no secret."""
_OF_OTHERS = re.compile(
    r"\b(?:[sprw]k[-_](?:live|test|proj|ant)[-_]|github_pat_|glpat-|xox[a-z]-|xapp-|ASIA|ya29\.|gsk_"
    r"|xai-|r8_|nvapi-|pplx-|tgp_|npm_|csk-|sess-|dop_v1_|fw_|jina_|tvly-|lsv2_|pypi-|eyJ)"
    r"[\w.~+/-]{10,}=*"
)
"""How keys of well-known services begin, and JSON web tokens."""
_LOOK = 4  # times the wanted length is looked at, because a message may quote megabytes


def scrub(text: str, most: int = 300) -> str:
    """A message without possible secrets: keys, and user names and queries in addresses.

    It is one line, and safe for a terminal.
    """
    text = _PEM.sub("***", text[: _LOOK * most])
    text = _QUERY.sub("?...", _USER_INFO.sub("", text))
    text = _COOKIE.sub(r"\1***", text)
    text = _OF_OTHERS.sub("***", _KEYS.sub("***", text))
    text = _NAMED.sub(r"\1\2***", text)
    return printable(text, most)


def plain(value: Any) -> Any:
    """The value with infinities and NaN as strings; `numbers` is the way back."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """The object with its own infinities as numbers again, not those of objects inside it."""
    return {
        key: float(value)
        if isinstance(value, str) and value in ("inf", "-inf", "nan") and key not in _WORDS
        else value
        for key, value in found.items()
    }


_WORDS = ("parent", "reason", "group", "pool", "name")
"""Keys whose value is always text: an agent may be called "inf"."""
