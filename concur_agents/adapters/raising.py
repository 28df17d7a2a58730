"""Our errors in a form that clients raise as they are."""

from __future__ import annotations

import sys

import openai

from concur_agents.errors import ConcurError

IS_OPENAI_2 = int(openai.__version__.partition(".")[0]) < 3
"""Whether the installed openai is older than 3.0, and so stands on httpx."""


def for_clients(error: ConcurError) -> ConcurError:
    """The same error in a form that clients raise as it is.

    openai 2 and Anthropic's client take any other error for one of the connection: they retry, and
    then raise "Connection error." in its place.
    """
    theirs: list[type[Exception]] = [openai.OpenAIError] if IS_OPENAI_2 else []
    anthropic = sys.modules.get("anthropic")  # if it has not been imported, it makes no call
    if anthropic is not None:
        theirs.append(anthropic.AnthropicError)
    theirs = [kind for kind in theirs if not isinstance(error, kind)]
    return _passing(type(error), *theirs)(*error.args) if theirs else error


def _passing(kind: type[ConcurError], *theirs: type[Exception]) -> type[ConcurError]:
    return type(kind.__name__, (kind, *theirs), {"__module__": kind.__module__})
