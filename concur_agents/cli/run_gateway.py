"""`concur run --gateway -- CMD`: the program's agents call an address that governs them.

The program may be in any language, and gets the address and its key by the environment variables
that clients read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from concur_agents.gateway.app import Gateway, in_thread
from concur_agents.governor import Governor

KEY_VARIABLES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HOSTED_VLLM_API_KEY")
"""Where clients find their key: openai's, Anthropic's, LiteLLM's."""

_OTHER_KEYS = ("ANTHROPIC_AUTH_TOKEN",)  # would be sent in place of the gateway's
_ALONE = ("127.0.0.1", "localhost")


@contextmanager
def behind_gateway(
    options: dict[str, Any], *, processes: bool, may_guess: bool
) -> Iterator[dict[str, str]]:
    """The environment of a program whose calls go through a gateway in this process.

    Args:
        options: of its governor.
        processes: each process of the program is an agent.
        may_guess: the agent of a call that names none is guessed.
    """
    token = secrets.token_urlsafe(16)  # because other users of this machine can connect, too
    with Governor(**options) as governor:
        gateway = Gateway(
            governor,
            options["url"] or (),
            key=options["api_key"],
            token=token,
            may_guess=may_guess,
            processes=processes,
        )
        with in_thread(gateway):
            yield _environ(gateway.url, token)


def _environ(url: str, token: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name not in _OTHER_KEYS}
    environ |= dict.fromkeys(KEY_VARIABLES, token)
    environ["ANTHROPIC_BASE_URL"] = url
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "HOSTED_VLLM_API_BASE"):
        environ[name] = f"{url}/v1"
    for name in ("NO_PROXY", "no_proxy"):
        environ[name] = ",".join([*filter(None, [environ.get(name)]), *_ALONE])
    return environ
