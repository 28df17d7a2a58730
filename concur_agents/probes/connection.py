"""How a metrics page is reached: headers of your own, and the certificates that are trusted."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from concur_agents.errors import ConfigError

Headers: TypeAlias = Mapping[str, str] | str
"""Headers by name, or as text: `name=value,name=value`, values URL-encoded."""

Verify: TypeAlias = ssl.SSLContext | str | os.PathLike[str] | bool
"""An SSL context, the file or folder of a CA, or False: any certificate is trusted."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = ("accept-encoding", "host", "content-length", "connection")


def read_headers(headers: Headers | None) -> dict[str, str]:
    """The headers by lower-case name.

    Raises:
        ConfigError: one is malformed, or ours to set; a value is not shown, because it may be a
            secret.
    """
    if isinstance(headers, str):
        pairs = [pair.partition("=") for pair in headers.split(",") if pair.strip()]
        if any(not sign for _, sign, _ in pairs):
            raise ConfigError("metrics_headers must look like name=value,name=value")
        headers = {name.strip(): unquote(value.strip()) for name, _, value in pairs}
    found: dict[str, str] = {}
    given: Mapping[Any, Any] = headers or {}
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"a header needs a name of letters, digits and -, got {name!r}")
        if name.lower() in _OURS:
            raise ConfigError(f"the header {name!r} is set by the probe itself: leave it out")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ConfigError(f"the value of the header {name!r} must be printable ASCII text")
        found[name.lower()] = value
    return found


def read_verify(verify: Verify) -> ssl.SSLContext | bool:
    """What an HTTP client takes: a context, or whether certificates are checked.

    Raises:
        ConfigError: there is no such file or folder, or it holds no certificate.
    """
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    if isinstance(verify, str) and verify.lower() in ("true", "false"):
        return verify.lower() == "true"
    if not isinstance(verify, str | os.PathLike):
        raise ConfigError(f"verify must be a CA's file, an SSL context, True or False: {verify!r}")
    path = Path(verify)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"verify={str(path)!r} cannot be read as certificates of a CA: {error}"
        ) from error


def certificate_trouble(error: BaseException | None) -> str | None:
    """What is wrong with a server's certificate, if that is what ended a connection."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or str(error)
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return str(error).rpartition("certificate verify failed:")[2].partition("(")[0].strip()
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None
