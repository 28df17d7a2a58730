"""Tokens, texts and replies of the embedded server: a tokenizer that can be computed in the head,
and a model without weights.

**Tokens.** Four characters are one token; a text of n characters has ceil(n / 4), a message at
least one. Roles, separators and special tokens cost nothing. So ``text_of_tokens(n)`` is a text of
exactly n tokens, and the length of a chat prompt is the sum over its messages (plus the JSON text
of its tools). In a prompt of token ids every id is a token.

**Content.** KV is shared message by message: a message's Run is named by a hash of its role, text
and tool calls, so a chat that repeats its history finds it cached, the server's own replies
included. A flat prompt (``/v1/completions``) finds whatever it continues, and otherwise shares in
chunks of 64 tokens.

**Replies.** A hash of the prompt and a seed decides length and words. The same prompt gets the same
reply.
"""

from __future__ import annotations

import json
import math
import random
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from concur_agents.sim.cache import Run

__all__ = [
    "CHARS_PER_TOKEN",
    "BadRequestError",
    "DeterministicModel",
    "FlatPrompts",
    "Message",
    "Reply",
    "Script",
    "ToolCall",
    "count_tokens",
    "read_messages",
    "read_responses_input",
    "text_of_tokens",
    "tools_run",
]

CHARS_PER_TOKEN = 4

_LETTERS = (
    "addallandanyaskbadbitboxbugbutcancapcatcutdaydiddirdocdrydueenderaerretcfabfarfewfixflyfor"
    "fungapgetgothadhasherhexhimhishithowitsjobkeykitlabletloglowmanmapmaymixnewnornotnownumold"
    "oneouroutownputranrawredrefrunsawsayseesetshesunsystagtaptarthetootoptrytwouseviawaswayweb"
    "whowhywonyesyetyouzip"
)
_WORDS = tuple(_LETTERS[i : i + 3] for i in range(0, len(_LETTERS), 3))


class BadRequestError(Exception):
    """A request that the server refuses with status 400."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def count_tokens(text: str) -> int:
    """Length of a text [tokens]: a quarter of its characters, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def text_of_tokens(tokens: int, seed: str = "") -> str:
    """A text of exactly so many tokens; another seed gives other words."""
    if tokens < 1:
        return ""
    words = random.Random(seed).choices(_WORDS, k=tokens)
    return " ".join(words) + "."  # "abc def.": three letters and a space, or the full stop


def _digest(*parts: bytes) -> bytes:
    lengths = b"".join(len(part).to_bytes(8, "little") for part in parts)
    return blake2b(b"".join((lengths, *parts)), digest_size=16).digest()


# --- messages ------------------------------------------------------------------------------------


class ToolCall(NamedTuple):
    """A tool call of a reply or of a chat's history."""

    id: str
    name: str
    arguments: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, whatever API it came through."""

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()

    @property
    def tokens(self) -> int:
        """Its length in a prompt [tokens]."""
        characters = len(self.text) + sum(
            len(c.name) + len(_canonical(c.arguments)) for c in self.calls
        )
        return max(1, -(-characters // CHARS_PER_TOKEN))

    @property
    def run(self) -> Run:
        """Its content: equal messages after equal prefixes share KV. Ids of tool calls do not
        matter.
        """
        parts = [self.role.encode(), self.text.encode("utf-8", "surrogatepass")]
        for call in self.calls:
            parts += [
                call.name.encode(),
                _canonical(call.arguments).encode("utf-8", "surrogatepass"),
            ]
        return Run(_digest(*parts), self.tokens)


def _canonical(arguments: str) -> str:
    """Clients send JSON back in other spacing."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True, separators=(",", ":"))
    except ValueError:
        return arguments


def tools_run(tools: Sequence[Any]) -> tuple[Run, ...]:
    """The beginning of a prompt whose request carries tools."""
    if not tools:
        return ()
    text = json.dumps(tools, sort_keys=True, separators=(",", ":"))
    return (Run(_digest(b"tools", text.encode()), count_tokens(text)),)


def read_messages(raw: Any) -> list[Message]:
    """The ``messages`` of a chat completion.

    Raises:
        BadRequestError: they are not messages.
    """
    if not isinstance(raw, list) or not raw:
        raise BadRequestError("messages must be a list of at least one message", "messages")
    messages = []
    for i, message in enumerate(raw):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f"messages[{i}] must be an object with a role", "messages")
        calls = message.get("tool_calls") or ()
        try:
            read = tuple(
                ToolCall(
                    c.get("id") or "", c["function"]["name"], c["function"].get("arguments") or ""
                )
                for c in calls
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRequestError(f"messages[{i}].tool_calls is malformed", "messages") from error
        messages.append(
            Message(message["role"], _text(message.get("content"), f"messages[{i}]"), read)
        )
    return messages


def read_responses_input(raw: Any, instructions: str | None) -> list[Message]:
    """The ``input`` of a response, as the messages that it stands for.

    Raises:
        BadRequestError: it is neither a text nor a list of items.
    """
    messages = [Message("system", instructions)] if instructions else []
    if isinstance(raw, str):
        return [*messages, Message("user", raw)]
    if not isinstance(raw, list) or not raw:
        raise BadRequestError("input must be a text or a list of at least one item", "input")
    for i, item in enumerate(raw):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message" and isinstance(item.get("role"), str):
            messages.append(Message(item["role"], _text(item.get("content"), f"input[{i}]")))
        elif kind == "function_call":
            call = ToolCall(
                item.get("call_id", ""), item.get("name", ""), item.get("arguments") or ""
            )
            last = messages[-1] if messages else None
            if last is not None and last.calls:  # parallel calls are one message
                messages[-1] = Message(last.role, last.text, (*last.calls, call))
            else:
                messages.append(Message("assistant", "", (call,)))
        elif kind == "function_call_output":
            messages.append(Message("tool", _text(item.get("output"), f"input[{i}]")))
        elif kind != "reasoning":
            raise BadRequestError(
                f"input[{i}] is of a type this server does not know: {kind!r}", "input"
            )
    if not messages:
        raise BadRequestError("input holds no message", "input")
    return messages


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    raise BadRequestError(f"{where}.content must be a text or a list of parts", "messages")


# --- flat prompts --------------------------------------------------------------------------------

_CHUNK_TOKENS = 64
_KEPT_SEQUENCES = 8192


class FlatPrompts:
    """Cuts the flat prompts of `/v1/completions` into Runs.

    It remembers what was sent and generated, so that a prompt which continues an earlier one,
    output included, begins with the very same Runs. Other prompts share in chunks of 64 tokens.
    """

    def __init__(self) -> None:
        # beginning -> length in bytes -> (hash of so many bytes, their Runs); the least recently
        # used go first
        self._known: OrderedDict[bytes, dict[int, tuple[bytes, tuple[Run, ...]]]] = OrderedDict()
        self._kept = 0

    def runs(self, data: bytes, width: int) -> tuple[Run, ...]:
        """The Runs of a prompt; `width` bytes are a token."""
        end, runs = self._longest_known(data, width)
        step = _CHUNK_TOKENS * width
        chunks = []
        while end < len(data):
            chunk = data[end : end + step]
            chunks.append(Run(_digest(chunk), -(-len(chunk) // width)))
            end += len(chunk)
        return (*runs, *chunks)

    def remember(self, data: bytes, width: int, runs: tuple[Run, ...]) -> None:
        """A prompt and its output, now in the cache as these Runs."""
        if len(data) < _CHUNK_TOKENS * width or len(data) % width:
            return
        start = data[: _CHUNK_TOKENS * width]
        lengths = self._known.setdefault(start, {})
        self._known.move_to_end(start)
        self._kept += len(data) not in lengths
        lengths[len(data)] = blake2b(data, digest_size=16).digest(), runs
        while self._kept > _KEPT_SEQUENCES:
            _, dropped = self._known.popitem(last=False)
            self._kept -= len(dropped)

    def _longest_known(self, data: bytes, width: int) -> tuple[int, tuple[Run, ...]]:
        found: tuple[int, tuple[Run, ...]] = 0, ()
        h = blake2b(digest_size=16)
        done = 0
        lengths = self._known.get(data[: _CHUNK_TOKENS * width], {})
        for length in sorted(n for n in lengths if n <= len(data)):
            h.update(data[done:length])
            done = length
            digest, runs = lengths[length]
            if h.copy().digest() == digest:
                found = length, runs
        return found


def flat_bytes(prompt: str | list[int]) -> tuple[bytes, int]:
    """A flat prompt as bytes, and how many of them are a token."""
    if isinstance(prompt, str):
        if prompt.isascii():
            return prompt.encode(), CHARS_PER_TOKEN
        return prompt.encode("utf-32-le", "surrogatepass"), 4 * CHARS_PER_TOKEN
    try:
        return array("I", prompt).tobytes(), 4
    except (TypeError, OverflowError) as error:
        raise BadRequestError("prompt must be a text or a list of token ids", "prompt") from error


# --- replies -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answers."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    cut: bool = False
    """It was ended by the limit on its length."""

    @property
    def message(self) -> Message:
        """The reply as a message of the chat to come; its length is that of its text and calls."""
        return Message("assistant", self.text, self.calls)


Script = Callable[[Sequence[Message]], Reply | None]
"""Decides a reply in place of the model; None: the model answers."""

_MARKER = "CALL:"


@dataclass(frozen=True, slots=True)
class DeterministicModel:
    """A model without weights: length and words of a reply follow from a hash of the prompt and a
    seed.

    If the request offers tools and the last message, of a user or a tool, holds ``CALL:name{"json":
    "arguments"}``, the reply is that tool call (several markers: several calls). So a test can have
    any framework go through its tool loop by what it says.
    """

    seed: int = 0
    median_tokens: float = 120.0
    sigma: float = 0.7
    """Of the log-normal from which lengths are drawn when the request does not fix them."""
    script: Script | None = None

    def reply(
        self,
        prompt: Sequence[Run],
        messages: Sequence[Message],
        tools: Sequence[str],
        *,
        min_tokens: int,
        max_tokens: int,
        ignore_eos: bool,
    ) -> Reply:
        """The one reply to this prompt."""
        scripted = self.script(messages) if self.script is not None else None
        if scripted is not None:
            return scripted
        name = _digest(str(self.seed).encode(), repr(prompt).encode())
        calls = self._asked_for(messages, tools, name.hex())
        if calls:
            return Reply(calls=calls)
        rng = random.Random(name)
        wanted = max(
            1, min_tokens, round(rng.lognormvariate(math.log(self.median_tokens), self.sigma))
        )
        cut = ignore_eos or wanted > max_tokens
        tokens = max_tokens if cut else wanted
        return Reply(text_of_tokens(tokens, name.hex()), cut=cut)

    @staticmethod
    def _asked_for(
        messages: Sequence[Message], tools: Sequence[str], name: str
    ) -> tuple[ToolCall, ...]:
        last = messages[-1] if messages else None
        if last is None or last.role not in {"user", "tool"} or not tools:
            return ()
        calls: list[ToolCall] = []
        for part in last.text.split(_MARKER)[1:]:
            tool, brace, rest = part.partition("{")
            if tool not in tools or not brace:
                continue
            try:
                arguments, _ = json.JSONDecoder().raw_decode(brace + rest)
            except ValueError:
                continue
            calls.append(ToolCall(f"call_{name[:16]}{len(calls)}", tool, json.dumps(arguments)))
        return tuple(calls)


def token_ids(text: str, tokens: int) -> list[int]:
    """Ids for a text, for clients that want some; the same text has the same ids."""
    rng = random.Random(text)
    return [rng.randrange(1, 151_000) for _ in range(tokens)]


def tool_names(tools: Sequence[Any]) -> list[str]:
    """Names of the tools that a request offers, in the form of either API."""
    names = []
    for tool in tools:
        if isinstance(tool, Mapping):
            function = tool.get("function")
            names.append(
                str(function.get("name") if isinstance(function, Mapping) else tool.get("name"))
            )
    return names
