"""Who may connect to what listens: this machine, or a client with the token."""

from __future__ import annotations

import binascii
import hmac
import ipaddress
from base64 import b64decode

from concur_agents.errors import ConfigError

BEARER = "a token (token=, --token), which they must send as `Authorization: Bearer TOKEN`"


def check_host(host: str, token: str | None, *, wish: str = BEARER) -> None:
    """Refuses to listen where others could connect, unless they would need a token.

    Args:
        host: where to listen.
        token: what clients have to send.
        wish: what the message asks to give.

    Raises:
        ConfigError: the host is not this machine alone, and there is no token.
    """
    if not token and not is_loopback(host):
        raise ConfigError(
            f"listening on {host!r} would let in every client that reaches it: give {wish}, "
            "or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


CHALLENGE = 'Basic realm="concur-agents", charset="UTF-8"'
"""For `WWW-Authenticate`: makes a browser ask for the token, as a password."""


def is_allowed(authorization: str | None, token: str | None) -> bool:
    """Whether a request with this `Authorization` header may pass; without a token each may.

    The token comes as `Bearer TOKEN`, or as the password of any user (`Basic`, RFC 7617), because
    that is what a browser can send.
    """
    if not token:
        return True
    given = (authorization or "").encode("utf-8", "replace")
    if given.startswith(b"Basic "):
        try:
            given = b"Bearer " + b64decode(given[6:], validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    return hmac.compare_digest(given, f"Bearer {token}".encode())
