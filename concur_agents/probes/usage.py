"""Reads token counts from the usage objects of client libraries and servers.

Names differ, places differ, and for some a prompt's count leaves out its cached part. `DIALECTS` is
the table of that, one row per dialect; everything else uses `Usage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from concur_agents._outside import is_from_handler
from concur_agents.core import Usage


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API reports usage. Names may be paths: `details.cached` is `cached` in `details`.

    Attributes:
        name: whose it is.
        prompt: the prompt's tokens; a dialect without them is not the dialect of an object.
        completion: tokens that were generated; several are added up.
        cached: prompt tokens found in the prefix cache; the first that is reported counts.
        beside: parts of the prompt that `prompt` leaves out; they are added to it. One of them must
            be reported, or the object is of another dialect.
    """

    name: str
    prompt: str
    completion: tuple[str, ...]
    cached: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


DIALECTS = (
    Dialect(
        # Also completions, vLLM, SGLang's `/generate` (`meta_info`), DeepSeek, Moonshot, Mistral,
        # LiteLLM, xAI's own client and CrewAI.
        "OpenAI chat completions",
        "prompt_tokens",
        ("completion_tokens",),
        (
            "prompt_tokens_details.cached_tokens",
            "input_token_details.cache_read",
            "prompt_cache_hit_tokens",
            "cached_tokens",
            "num_cached_tokens",
            "cache_read_input_tokens",
            "cached_prompt_text_tokens",
            "cached_prompt_tokens",
            "prompt_token_details.cached_tokens",
        ),
    ),
    Dialect(
        "DeepSeek, without a sum",
        "prompt_cache_miss_tokens",
        ("completion_tokens",),
        ("prompt_cache_hit_tokens",),
        beside=("prompt_cache_hit_tokens",),
    ),
    Dialect(
        "Anthropic messages",
        "input_tokens",
        ("output_tokens",),
        ("cache_read_input_tokens",),
        beside=("cache_read_input_tokens", "cache_creation_input_tokens"),
    ),
    Dialect(
        "Inspect AI",
        "input_tokens",
        ("output_tokens",),
        ("input_tokens_cache_read",),
        beside=("input_tokens_cache_read", "input_tokens_cache_write"),
    ),
    Dialect(
        # Also its realtime API, LangChain's `usage_metadata`, Pydantic AI's `RequestUsage` and
        # DashScope.
        "OpenAI responses",
        "input_tokens",
        ("output_tokens",),
        (
            "input_tokens_details.cached_tokens",
            "input_token_details.cache_read",
            "input_token_details.cached_tokens",
            "prompt_tokens_details.cached_tokens",
            "cache_read_tokens",
            "cached_input_tokens",
            "cached_tokens",
        ),
    ),
    Dialect(
        "Bedrock converse",
        "inputTokens",
        ("outputTokens",),
        ("cacheReadInputTokens",),
        beside=("cacheReadInputTokens", "cacheWriteInputTokens"),
    ),
    Dialect(
        "Bedrock, Nova",
        "inputTokens",
        ("outputTokens",),
        ("cacheReadInputTokenCount",),
        beside=("cacheReadInputTokenCount", "cacheWriteInputTokenCount"),
    ),
    Dialect(
        "Bedrock, metrics of an invocation",
        "inputTokenCount",
        ("outputTokenCount",),
        ("cacheReadInputTokenCount",),
        beside=("cacheReadInputTokenCount", "cacheWriteInputTokenCount"),
    ),
    Dialect("Bedrock, metrics without a cache", "inputTokenCount", ("outputTokenCount",)),
    Dialect(
        "Vercel AI SDK",
        "inputTokens",
        ("outputTokens",),
        ("inputTokenDetails.cacheReadTokens", "cachedInputTokens"),
    ),
    Dialect("Vercel AI SDK 4", "promptTokens", ("completionTokens",)),
    Dialect(
        "Gemini, Vertex AI",
        "promptTokenCount",
        ("candidatesTokenCount", "thoughtsTokenCount"),
        ("cachedContentTokenCount",),
    ),
    Dialect(
        # Also Llama on Bedrock, which has `generation_token_count`.
        "google-genai",
        "prompt_token_count",
        ("candidates_token_count", "thoughts_token_count", "generation_token_count"),
        ("cached_content_token_count",),
    ),
    Dialect(
        "Gemini interactions",
        "total_input_tokens",
        ("total_output_tokens", "total_thought_tokens"),
        ("total_cached_tokens",),
    ),
    Dialect("Cohere", "tokens.input_tokens", ("tokens.output_tokens",), ("cached_tokens",)),
    Dialect("watsonx", "input_token_count", ("generated_token_count", "output_token_count")),
    Dialect("llama.cpp", "tokens_evaluated", ("tokens_predicted",), ("timings.cache_n",)),
    Dialect("Ollama", "prompt_eval_count", ("eval_count",)),
    Dialect("Text Generation Inference", "input_length", ("generated_tokens",)),
)
"""If several rows fit, the first that counts any prompt tokens is taken."""

Path = tuple[str, ...]


class _Paths(NamedTuple):
    """The paths of a dialect, split into names: this is done once, because each answer is read."""

    prompt: Path
    completion: tuple[Path, ...]
    cached: tuple[Path, ...]
    beside: tuple[Path, ...]


def _split(paths: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(tuple(path.split(".")) for path in paths)


_COMPILED = tuple(
    _Paths(
        tuple(dialect.prompt.split(".")),
        _split(dialect.completion),
        _split(dialect.cached),
        _split(dialect.beside),
    )
    for dialect in DIALECTS
)

PLACES = (
    "usage",
    "usage_metadata",
    "usageMetadata",
    "meta_info",
    "message",
    "response",
    "metadata",
    "meta",
    "details",
    "token_usage",
    "llm_output",
    "results",
    "metrics",
    "x_groq",
    "amazon-bedrock-invocationMetrics",
)
"""Where answers and events hold their usage."""

_MOST_COUNTED = 10**12
_DEEPEST = 3  # places in one another: an event, its message, its usage


def read_usage(source: object) -> Usage | None:
    """The usage that an object reports; None: it reports none. Whatever it gets, it does not raise.

    Args:
        source: a `Usage`; a usage object of one of the `DIALECTS`; the answer or the stream event
            that holds it; as an object or as a mapping. A count is a whole number, also numpy's;
            text, negative numbers, NaN and more than 1e12 are none.

    Returns:
        Prompt, completion and cached tokens. `cached_tokens` is None, not 0, if the
        server does not report it: vLLM and SGLang need a flag for that.
    """
    try:
        if type(source) is Usage and _is_exact(source):  # read before, as adapters do
            return source
        return _read(source, _DEEPEST)
    except Exception as error:  # because objects of others may raise at any attribute
        if is_from_handler(error):
            raise
        return None


def generated_tokens(source: object) -> int | None:
    """The generated tokens that an object reports, also without a prompt; None: it reports none.

    The last event of Anthropic's older streams holds nothing else.
    """
    usage = read_usage(source)
    if usage is not None:
        return usage.completion_tokens
    try:
        nested = _get(source, "usage")
        for paths in _COMPILED:
            for holder in (source, nested):
                found = [_count(holder, path) for path in paths.completion]
                if any(count is not None for count in found):
                    return sum(count or 0 for count in found)
    except Exception as error:  # as above
        if is_from_handler(error):
            raise
    return None


def _read(source: object, depth: int) -> Usage | None:
    if source is None:
        return None
    if isinstance(source, list | tuple):
        if depth == 0 or not source:
            return None
        return _read(source[-1], depth - 1)  # of events the last one counts
    if isinstance(source, Usage):
        return _checked(source.prompt_tokens, source.completion_tokens, source.cached_tokens)
    found: Usage | None = None
    is_dict = type(source) is dict
    for paths in _COMPILED:
        if is_dict and paths.prompt[0] not in source:  # type: ignore[operator]
            continue
        usage = _read_as(paths, source)
        if usage is not None and (found is None or not found.prompt_tokens):
            found = usage
            if usage.prompt_tokens:
                break
    if found is not None or depth == 0:
        return found
    if depth > 1 and not is_dict and _get(source, "not_a_field_of_any_usage") is not None:
        depth -= 1  # a mock has every place, and each of these again: there is no end to them
    for place in PLACES:
        nested = _get(source, place)
        if nested is not None and nested is not source:
            usage = _read(nested, depth - 1)
            if usage is not None:
                return usage
    return _read_ids(source)


def _read_ids(source: object) -> Usage | None:
    """The usage of an answer that holds the ids of all tokens, such as vLLM's `RequestOutput`."""
    prompt, outputs = _get(source, "prompt_token_ids"), _get(source, "outputs")
    if not isinstance(prompt, list | tuple) or not isinstance(outputs, list | tuple):
        return None
    generated = [_get(output, "token_ids") for output in outputs]
    completion = sum(len(ids) for ids in generated if isinstance(ids, Sequence))
    return _checked(len(prompt), completion, _get(source, "num_cached_tokens"))


def _read_as(paths: _Paths, source: object) -> Usage | None:
    prompt = _count(source, paths.prompt)
    if prompt is None:
        return None
    if paths.beside:
        beside = [count for path in paths.beside if (count := _count(source, path)) is not None]
        if not beside:
            return None
        prompt += sum(beside)
    completion = 0
    for path in paths.completion:
        completion += _count(source, path) or 0
    cached = None
    is_dict = type(source) is dict
    for path in paths.cached:
        if not is_dict or path[0] in source:  # type: ignore[operator]
            cached = _count(source, path)
            if cached is not None:
                break
    if prompt > _MOST_COUNTED or completion > _MOST_COUNTED:
        return None
    return Usage(prompt, completion, None if cached is None else min(cached, prompt))


def _checked(prompt: object, completion: object, cached: object) -> Usage | None:
    sent, got, hit = _whole(prompt), _whole(completion), _whole(cached)
    if sent is None:
        return None
    return Usage(sent, got or 0, None if hit is None else min(hit, sent))


def _count(source: object, path: Path) -> int | None:
    """The tokens at a path; None: there is no count."""
    place: Any = source
    for name in path:
        place = place.get(name) if type(place) is dict else _get(place, name)
        if place is None:
            return None
    return _whole(place)


def _is_exact(usage: Usage) -> bool:
    sent, got, hit = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
    return (
        type(sent) is type(got) is int
        and sent <= _MOST_COUNTED
        and got <= _MOST_COUNTED
        and (hit is None or (type(hit) is int and hit <= sent))
    )


def _whole(value: object) -> int | None:
    if type(value) is int:  # the usual case, because to ask for `Real` costs more
        return value if 0 <= value <= _MOST_COUNTED else None
    if value is None or isinstance(value, bool) or not isinstance(value, Real):
        return None
    number: Any = value
    return int(number) if 0 <= number <= _MOST_COUNTED else None


def _get(source: Any, name: str) -> Any:
    # Asked first, because each mock has a class of its own: `isinstance` then looks at all others.
    if hasattr(type(source), "__getitem__") and isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)
