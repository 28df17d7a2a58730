"""Reads token counts from the usage objects of client libraries.

Names differ (`prompt_tokens` or `input_tokens`), places differ (on the response or on its `usage`),
and some objects are dictionaries. Only this file knows that; everything else uses `Usage`.
"""

from __future__ import annotations

from typing import Any

from concur_agents.core import Usage

_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_CACHED = ("cached_tokens", "cache_read")


def read_usage(source: object) -> Usage | None:
    """The usage that an object reports; None: it reports none.

    Args:
        source: a `Usage`; the `usage` of an OpenAI chat completion, completion or response; one of
            these responses as a whole; LangChain's `usage_metadata`; or any of them as a mapping.

    Returns:
        Prompt, completion and cached tokens. `cached_tokens` is None, not 0, if the
        server does not report it: vLLM and SGLang need a flag for that.
    """
    if source is None or isinstance(source, Usage):
        return source
    prompt = _count(source, _PROMPT)
    if prompt is None:
        nested = _get(source, "usage") or _get(source, "usage_metadata")
        return None if nested is None or nested is source else read_usage(nested)
    cached = None
    for name in _DETAILS:
        details = _get(source, name)
        if details is not None:
            cached = _count(details, _CACHED)
            break
    if cached is not None:
        cached = min(cached, prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_count(source, _COMPLETION) or 0,
        cached_tokens=cached,
    )


def _count(source: object, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = _get(source, name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
            return int(value)
    return None


def _get(source: Any, name: str) -> Any:
    if isinstance(source, dict):
        return source.get(name)
    return getattr(source, name, None)
