"""A live OpenAI-compatible endpoint, asked for exact numbers of tokens.

Prompts are token ids where the endpoint takes them (`/v1/completions` of vLLM, SGLang, Dynamo),
else words that its own `/tokenize` counts as one token each. Output lengths are exact through
`min_tokens` = `max_tokens` and `ignore_eos`. Nothing is retried here: the driver counts every
failure.
"""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import openai.types.chat

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.runtime.endpoints import Address

if TYPE_CHECKING:
    from openai._types import RequestOptions

__all__ = ["Completion", "Endpoint", "EndpointError", "Via", "Vocabulary", "post_json"]

Unit = int | str  # a token id, or a word that is one token

# Ids that every tokenizer in use has, clear of the special ones at the low end. 1,900 of them make
# a block of 16 equal to another by chance once in 10^52.
_IDS = range(100, 2000)
_COMMON = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make like him "
    "into time has look two more write go see number no way could people my than first water been "
    "call who its now find long down day did get come made may part"
)
# Words that one family of tokenizers or another knows as single tokens: ids spelled out (word-level
# tokenizers made for tests), then everyday English (any tokenizer trained on text).
_FAMILIES = (tuple(f"t{i}" for i in _IDS), tuple(_COMMON.split()))


class EndpointError(ConcurError):
    """The endpoint cannot be used for a replay; says what it answered."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What one call cost."""

    usage: Any  # the response's own usage object, as an agent would record it
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None  # None: the endpoint does not tell
    ids: list[int] | None  # the generated tokens; None: the endpoint does not tell


class Via(NamedTuple):
    """Calls go through a proxy, which learns from a field of their body whose they are."""

    url: str
    program: str


@dataclass(frozen=True, slots=True)
class _Dialect:
    """One way of asking for exact lengths."""

    route: str  # "completions" or "chat"
    units: str  # "ids" or "words"
    tells_ids: bool

    def __str__(self) -> str:
        told = ", generated ids reported" if self.tells_ids else ""
        return f"{self.route} with {self.units}{told}"


# from exact and cheap to roundabout; the first that works is used
_DIALECTS = (
    _Dialect("completions", "ids", True),
    _Dialect("completions", "ids", False),
    _Dialect("completions", "words", False),
    _Dialect("chat", "words", False),
)


class Vocabulary:
    """Turns keys of content into token ids or words: the same key always gives the same units."""

    def __init__(self, units: Sequence[Unit], salt: str) -> None:
        self._units = units
        self._salt = salt

    def spell(self, key: Hashable, tokens: int) -> list[Unit]:
        """The content called ``key``; a longer spelling begins with the shorter one."""
        return random.Random(f"{self._salt}/{key!r}").choices(self._units, k=tokens)


class Endpoint:
    """One server. ``open`` finds out how it wants to be asked; then ``complete`` asks.

    Args:
        url: base address, with or without ``/v1``.
        model: name of the model; None: the first one the server lists.
        timeout_s: longest one call may take [s].
        chat_only: a proxy that stands before it knows no other route.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 1800.0,
        chat_only: bool = False,
    ) -> None:
        self._dialects = [each for each in _DIALECTS if each.route == "chat" or not chat_only]
        self.base = url.rstrip("/").removesuffix("/v1")
        self.model = model or ""
        self.max_context_tokens: int | None = None  # longest prompt + output; None: unknown
        self._dialect = self._dialects[0]
        self._words: Sequence[str] = ()
        self._frame_tokens = 0  # what the server adds to a prompt of words
        self._client = openai.AsyncOpenAI(
            base_url=f"{self.base}/v1",
            api_key=api_key or "none",
            max_retries=0,
            timeout=timeout_s,
            # Servers drop idle connections about when the next step starts; a new one per call
            # loses no step.
            default_headers={"Connection": "close"},
        )

    async def open(self) -> None:
        """Find the model and the first dialect that gives exact lengths.

        Raises:
            EndpointError: unreachable, the model is not served, or no dialect gives exact lengths.
        """
        try:
            served = (await self._client.models.list()).data
        except openai.APIError as error:
            raise EndpointError(
                f"{self.base}/v1/models cannot be read: {error}; is the server up?"
            ) from error
        names = [model.id for model in served]
        if not names or (self.model and self.model not in names):
            raise EndpointError(
                f"model {self.model!r} is not served by {self.base}; it lists {names}"
            )
        chosen = served[names.index(self.model)] if self.model else served[0]
        self.model = chosen.id
        length = (chosen.model_extra or {}).get("max_model_len")
        self.max_context_tokens = length if isinstance(length, int) else None
        answers = []
        for dialect in self._dialects:
            if dialect.units == "words" and not self._words:
                self._words = await self._single_token_words()
            self._dialect, self._frame_tokens = dialect, 0
            problem = await self._try_dialect()
            if problem is None:
                return
            answers.append(f"{dialect}: {problem}")
        raise EndpointError(f"{self.base} gives no exact token counts. " + "; ".join(answers))

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.close()

    @property
    def dialect(self) -> str:
        """How prompts are sent, in words."""
        return str(self._dialect)

    @property
    def tells_ids(self) -> bool:
        """Whether answers carry the generated tokens, so that the next prompt can repeat them."""
        return self._dialect.tells_ids

    def vocabulary(self, salt: str) -> Vocabulary:
        """Units this endpoint understands; another salt spells everything differently."""
        return Vocabulary(_IDS if self._dialect.units == "ids" else self._words, salt)

    async def complete(
        self, prompt: Sequence[Unit], output_tokens: int, at: Address | Via | None = None
    ) -> Completion:
        """One call with a prompt of exactly ``len(prompt)`` tokens and exactly so many output
        tokens; `at` says which of several data-parallel engines is to take it, or which proxy.

        Raises:
            openai.APIError: whatever the endpoint or the way to it did wrong.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        if self._dialect.tells_ids:
            body["return_token_ids"] = True
        whole: Any = prompt
        if self._dialect.units == "words":
            kept = prompt[: max(1, len(prompt) - self._frame_tokens)]
            whole = "".join(f" {unit}" for unit in kept)
        told: Any = None
        response: Any
        pinned: RequestOptions = {}
        client = self._client
        if isinstance(at, Via):
            client = client.with_options(base_url=f"{at.url}/v1")
            body["program_id"] = at.program
        elif at is not None and at.rank is not None:
            pinned = {"headers": {"X-data-parallel-rank": str(at.rank)}}
        # The client's own create() checks a prompt of ids one by one, which takes 0.3 s for 8,000;
        # its post() sends the body as it is.
        if self._dialect.route == "chat":
            body["messages"] = [{"role": "user", "content": whole}]
            response = await client.post(
                "/chat/completions",
                body=body,
                options=pinned,
                cast_to=openai.types.chat.ChatCompletion,
            )
        else:
            body["prompt"] = whole
            response = await client.post(
                "/completions", body=body, options=pinned, cast_to=openai.types.Completion
            )
            if response.choices:
                told = getattr(response.choices[0], "token_ids", None)
        usage = response.usage
        if usage is None:
            raise EndpointError(
                f"{self.base} answers without usage: token counts cannot be checked"
            )
        details = usage.prompt_tokens_details
        return Completion(
            usage=usage,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cached_tokens=details.cached_tokens if details is not None else None,
            ids=list(told) if told else None,
        )

    async def reset_cache(self) -> bool:
        """Empty the prefix cache, a host tier behind it too; False if this engine does not offer
        it (vLLM only does in development mode).
        """
        for path in ("/reset_prefix_cache?reset_external=true", "/flush_cache"):
            status, _ = await self._post(path, None)
            if status == 200:
                return True
        return False

    async def _try_dialect(self) -> str | None:
        """None if a small call comes back with the lengths asked for, else what went wrong."""
        if self._dialect.units == "words" and not self._words:
            return "no word that /tokenize counts as one token"
        prompt = self.vocabulary("hello").spell("hello", 24)
        try:
            answer = await self.complete(prompt, 2)
        except (openai.APIError, EndpointError) as error:
            return str(error)[:200]
        if answer.output_tokens != 2:
            return f"{answer.output_tokens} output tokens instead of 2"
        if self._dialect.units == "words":
            self._frame_tokens = (
                answer.prompt_tokens - 24
            )  # a chat template, or a token that begins every text
        elif answer.prompt_tokens != 24:
            return f"24 units were counted as {answer.prompt_tokens} tokens"
        if self._dialect.tells_ids and answer.ids is None:
            return "generated ids not reported"
        return None

    async def _single_token_words(self) -> Sequence[str]:
        """Words that the server's tokenizer counts as one token each and tells apart; empty: none
        found.
        """
        for family in _FAMILIES:
            text = "".join(f" {word}" for word in family)
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            status, answer = await self._post("/tokenize", body)
            ids = answer.get("tokens", []) if status == 200 else []
            if len(ids) == len(family) and len(set(ids)) == len(family):
                return family
        return ()

    async def _post(self, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status (0: no answer) and JSON answer (empty: none) of a call beside the OpenAI API."""
        return await asyncio.to_thread(post_json, self.base + path, body)


def post_json(url: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    """Status (0: no answer) and JSON answer (empty: none) of one call.

    Raises:
        ConfigError: the address is none of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url must start with http:// or https://, got {url!r}")
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode() if body is not None else b"",
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
            status = int(response.status)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        return error.code, {}
    except OSError:
        return 0, {}
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    return status, answer if isinstance(answer, dict) else {}
