"""Which requests hold KV cache: the routes that are governed, and how unknown ones are noticed.

A route is matched by the segments of the path, so that a trailing slash, a prefix of a gateway or a
sub-route such as `/chat/completions/tokens` changes nothing.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from concur_agents.errors import UngovernedError

if TYPE_CHECKING:
    from concur_agents.core import Usage
    from concur_agents.runtime.agent import Governing

logger = logging.getLogger("concur_agents")

_GENERATE = frozenset(
    ("completions", "completion", "responses", "messages", "generate", "generate_stream", "infill")
)
"""Segments of chat and plain completions, of responses, and of the Messages and native APIs."""

_METHODS = ("generateContent", "streamGenerateContent", "rawPredict", "streamRawPredict")
"""What follows the colon in the last segment of Google's routes."""

_BEDROCK = ("invoke", "invoke-with-response-stream", "converse", "converse-stream")
"""What follows `model` and its name in the routes of Bedrock."""

_OTHER = frozenset(
    ("threads", "batches", "cancel", "count_tokens", "input_tokens", "input_items", "render")
)
"""Segments of requests beside those, which generate nothing."""

_STORED = re.compile(r"(chatcmpl|cmpl|resp|msg)[-_]")
"""How the id of an answer begins: a request about a stored answer generates nothing."""


def is_llm_call(method: str, path: str, routes: tuple[str, ...] = ()) -> bool:
    """Whether a request holds KV cache while it runs.

    Args:
        method: of the request.
        path: of the request, without the query.
        routes: further routes of the user's, see `Governor`.
    """
    return method.upper() == "POST" and _generates(path, routes)


@lru_cache(maxsize=1024)
def _generates(path: str, routes: tuple[str, ...]) -> bool:
    segments = _segments(path)
    for route in routes:
        wanted = _segments(route)
        size = len(wanted)
        if any(segments[at : at + size] == wanted for at in range(len(segments) - size + 1)):
            return True
    if not segments or not _OTHER.isdisjoint(segments):
        return False
    if segments[-1].rpartition(":")[2] in _METHODS or segments[-2:] == ["api", "chat"]:
        return True
    if segments[-3:-2] == ["model"] and segments[-1] in _BEDROCK:
        return True
    found = [at for at, segment in enumerate(segments) if segment in _GENERATE]
    return bool(found) and not any(map(_STORED.match, segments[found[0] + 1 :]))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


_warned: WeakKeyDictionary[Governing, bool] = WeakKeyDictionary()


def meet_unknown(governor: Governing, path: str, usage: Usage | None) -> None:
    """A request to a route that is not governed was answered with this usage.

    Embeddings and scores report usage too, but generate nothing.

    Raises:
        UngovernedError: tokens were generated, and the governor was made with
            `ungoverned="error"`.
    """
    if usage is None or not usage.completion_tokens:
        return
    wish = (
        f"{path} generated {usage.completion_tokens} tokens and is no route that is governed: "
        f"if it calls a model, make the governor with `routes=[{path!r}]`"
    )
    if governor.ungoverned == "error":
        raise UngovernedError(wish)
    if governor not in _warned:
        _warned[governor] = True
        logger.warning("%s (logged once)", wish.encode("ascii", "backslashreplace").decode())
