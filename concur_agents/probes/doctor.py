"""What an endpoint is, what it tells, and what it lacks: the examination behind `concur doctor`.

Plain functions over HTTP; needs neither typer nor rich. Nothing is raised for a sick endpoint:
every trouble becomes a finding of the `Diagnosis`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from concur_agents.core import Usage
from concur_agents.errors import ProbeError
from concur_agents.probes.http import Http, HttpProbe
from concur_agents.probes.page import SIGNALS, PageReading
from concur_agents.probes.usage import read_usage

Verdict = Literal["good", "usable", "unusable"]
Level = Literal["info", "warning", "error"]

MEANINGS: Final[Mapping[str, str]] = {
    "kv_usage": "share of the KV pool held by requests in flight",
    "capacity_tokens": "size of the KV pool [tokens]",
    "hit_tokens_total": "prompt tokens served from the prefix cache",
    "query_tokens_total": "prompt tokens looked up in the prefix cache",
    "running": "requests being computed",
    "waiting": "requests queued in the engine",
    "preemptions_total": "requests thrown out of the batch",
    "computed_tokens_total": "prompt tokens really prefilled",
    "prefill_s_total": "time in prefill, summed over requests [s]",
    "generated_tokens_total": "output tokens",
    "decode_s_total": "time in decode, summed over requests [s]",
}
"""Signal -> what it says, in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One number the endpoint gives, or does not."""

    name: str
    """Field of a `Reading`."""
    meaning: str
    value: float | None
    """As it was read; None: the endpoint does not tell it."""
    sources: tuple[str, ...]
    """Metric names it was read from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing worth knowing. A warning makes the endpoint `usable`, an error `unusable`."""

    level: Level
    text: str
    flag: str | None = None
    """The engine's option that would mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProof:
    """What two requests with the same prompt showed."""

    prompt_tokens: int
    """Length of the prompt [tokens]."""
    first_cached_tokens: int | None
    """Cached tokens of the first request; None: the server did not say."""
    second_cached_tokens: int | None
    """Cached tokens of the second one: near `prompt_tokens` where caching works."""
    first_s: float
    """Time to the first answer [s]."""
    second_s: float
    """Time to the second answer [s]."""
    hit_counter_rose_tokens: float | None
    """By how much the engine's own hit counter rose meanwhile; None: it has none."""

    @property
    def works(self) -> bool:
        """Whether the second request was told to come from the cache."""
        return bool(self.second_cached_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of an examination; `as_dict()` is what `--json` prints."""

    url: str
    engine: str | None
    """vllm, sglang or dynamo; None: not recognised."""
    backend: str | None = None
    """The engine behind a Dynamo worker."""
    version: str | None = None
    model: str | None = None
    """The model that was asked, or would be."""
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    """Longest context [tokens]."""
    capacity_tokens: float | None = None
    """KV pool of the endpoint [tokens]."""
    smallest_capacity_tokens: float | None = None
    """KV pool of its smallest rank: the most that one agent can use [tokens]."""
    pools: int = 0
    """KV pools on the page: data-parallel ranks or replicas."""
    block_size: int | None = None
    """Tokens per KV block."""
    prefix_caching: bool | None = None
    """None: the endpoint does not say."""
    signals: tuple[Signal, ...] = ()
    proof: CacheProof | None = None
    """None: the two requests were not sent, or failed."""
    findings: tuple[Finding, ...] = ()
    code: tuple[str, ...] = ()
    """Lines of Python to begin with."""

    @property
    def verdict(self) -> Verdict:
        """The worst finding decides."""
        levels = {finding.level for finding in self.findings}
        return "unusable" if "error" in levels else "usable" if "warning" in levels else "good"

    @property
    def exit_code(self) -> int:
        """0 good, 1 usable with warnings, 2 not usable."""
        return {"good": 0, "usable": 1, "unusable": 2}[self.verdict]

    @property
    def flags(self) -> tuple[str, ...]:
        """Options to add to the engine's command line, each once."""
        return tuple(dict.fromkeys(f.flag for f in self.findings if f.flag))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, with stable keys."""
        return asdict(self) | {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "flags": list(self.flags),
        }


def diagnose(
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    timeout_s: float = 30.0,
    send: bool = True,
    patience_s: float = 2.0,
) -> Diagnosis:
    """Examine an endpoint.

    Args:
        url: Where the engine listens, with or without ``/v1``.
        api_key: Bearer token, where one is needed.
        model: The model to ask; the first one served by default.
        timeout_s: Longest wait for one answer [s].
        send: Whether to send two tiny completions, to prove that cached tokens are told.
        patience_s: How long the engine's counters may take to show these two [s].

    Raises:
        ConfigError: `url` is no http(s) address.
    """
    with (
        HttpProbe(url, api_key=api_key, model=model, timeout_s=min(timeout_s, 5.0)) as probe,
        Http(url, api_key=api_key, timeout_s=timeout_s) as http,
    ):
        return _Examination(http, probe, keyed=api_key is not None).run(
            model, send=send, patience_s=patience_s
        )


@dataclass
class _Examination:
    """One visit: what was found so far, in the order in which it is looked for."""

    http: Http
    probe: HttpProbe
    keyed: bool
    """A key was given."""
    findings: list[Finding] = field(default_factory=list)

    def run(self, model: str | None, *, send: bool, patience_s: float) -> Diagnosis:
        page = self._page()
        served = self._models()
        names = tuple(each["id"] for each in served)
        asked = self._choose(model, names, page)
        owner = next((each["owned_by"] for each in served if each["id"] == asked), None)
        engine = page.engine if page else owner if owner in ("vllm", "sglang") else None
        about = self._about(engine) if page or served else {}
        max_model_len = next(
            (each["max_model_len"] for each in served if each["id"] == asked), None
        ) or (page.max_model_len if page else None)
        prefix_caching = page.prefix_caching if page else None
        if prefix_caching is None and isinstance(about.get("disable_radix_cache"), bool):
            prefix_caching = not about["disable_radix_cache"]

        if page is None and asked is None and not self._has_error():
            self._note("error", "Neither metrics nor models: this is no serving engine")
        self._judge_page(page, engine, about)
        self._judge_size(page, max_model_len)
        proof = None
        if prefix_caching is False:
            self._prefix_caching_is_off(engine)
        elif send and asked is not None:
            proof = self._prove(asked, max_model_len, page, patience_s)
            if proof is not None:
                self._judge_proof(proof, engine, page)
                prefix_caching = prefix_caching or proof.works or None
        elif not send:
            self._note("info", "Whether answers tell cached tokens was not tried (--no-send)")
        told = page.reading if page else None
        return Diagnosis(
            url=self.probe.url,
            engine=engine,
            backend=page.backend if page else None,
            version=_text(about.get("version")) or (page.version if page else None),
            model=asked,
            models=names or (page.models if page else ()),
            max_model_len=max_model_len,
            capacity_tokens=told.capacity_tokens if told else None,
            smallest_capacity_tokens=page.smallest_capacity_tokens if page else None,
            pools=len(page.readings) if page else 0,
            block_size=page.block_size if page else None,
            prefix_caching=prefix_caching,
            signals=tuple(
                Signal(
                    name=name,
                    meaning=MEANINGS[name],
                    value=getattr(told, name) if told else None,
                    sources=tuple(page.sources.get(name, ())) if page else (),
                )
                for name in SIGNALS
            ),
            proof=proof,
            findings=tuple(self.findings),
            code=_code(self.probe.url, page, proof, keyed=self.keyed, usable=not self._has_error()),
        )

    # -- looking -----------------------------------------------------------------------------

    def _page(self) -> PageReading | None:
        try:
            return self.probe.read_page()
        except ProbeError as error:
            self._note("warning", f"No metrics: {error}")
            return None

    def _models(self) -> list[dict[str, Any]]:
        try:
            answer = self.http.get("/v1/models")
        except ProbeError as error:
            self._note("error", f"The OpenAI API cannot be reached: {error}")
            return []
        if answer.status in (401, 403):
            self._note("error", f"/v1/models asks for a key (HTTP {answer.status}): give --api-key")
            return []
        data = _json(answer.text).get("data") if answer.status == 200 else None
        if not isinstance(data, list):
            self._note(
                "warning",
                f"/v1/models answered HTTP {answer.status} without a list of models: "
                "is this the address of the OpenAI API? A worker's metrics port has none",
            )
            return []
        return [
            {
                "id": each["id"],
                "owned_by": each.get("owned_by"),
                "max_model_len": _count(each.get("max_model_len")),
            }
            for each in data
            if isinstance(each, dict) and isinstance(each.get("id"), str)
        ]

    def _choose(
        self, model: str | None, served: tuple[str, ...], page: PageReading | None
    ) -> str | None:
        if model is not None:
            if served and model not in served:
                self._note("error", f"{model!r} is not served; there are {', '.join(served)}")
                return None
            return model
        if not served:
            return None
        # A page that names its model names the one whose numbers we read.
        return page.model if page and page.model in served else served[0]

    def _about(self, engine: str | None) -> dict[str, Any]:
        """Version and switches, where the engine has a page for them. Absence means nothing."""
        pages = {"vllm": ["/version"], "sglang": ["/server_info", "/get_server_info"]}
        for path in pages.get(engine or "", ["/version"]):
            try:
                answer = self.http.get(path)
            except ProbeError:
                continue
            if answer.status == 200 and (about := _json(answer.text)):
                return about
        return {}

    def _prove(
        self, model: str, max_model_len: int | None, page: PageReading | None, patience_s: float
    ) -> CacheProof | None:
        prompt = _prompt(max_model_len, page.block_size if page else None)
        answers = []
        for _ in range(2):
            began_s = time.monotonic()
            usage = self._complete(model, prompt)
            if usage is None:
                return None
            answers.append((usage, time.monotonic() - began_s))
        (first, first_s), (second, second_s) = answers
        return CacheProof(
            prompt_tokens=second.prompt_tokens,
            first_cached_tokens=first.cached_tokens,
            second_cached_tokens=second.cached_tokens,
            first_s=round(first_s, 4),
            second_s=round(second_s, 4),
            hit_counter_rose_tokens=self._hits_since(page, patience_s),
        )

    def _complete(self, model: str, prompt: str) -> Usage | None:
        """Send one tiny request; a model without a chat template is asked as plain text."""
        small = {"model": model, "max_tokens": 1, "temperature": 0.0}
        ways = (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
            ("/v1/completions", {"prompt": prompt}),
        )
        trouble = ""
        for path, body in ways:
            try:
                answer = self.http.post(path, small | body)
            except ProbeError as error:
                self._note("error", f"A tiny request failed: {error}")
                return None
            if answer.status == 200:
                usage = read_usage(_json(answer.text).get("usage"))
                if usage is None:
                    self._note("error", f"{path} answered without `usage`: nothing can be counted")
                return usage
            trouble = f"{path} answered HTTP {answer.status}: {_short(answer.text)}"
            if answer.status not in (400, 404, 405, 422):
                break
        self._note("error", f"A tiny request failed: {trouble}")
        return None

    def _hits_since(self, before: PageReading | None, patience_s: float) -> float | None:
        """How far the hit counter has risen; waits for it a little, as engines report late."""
        if before is None or before.reading.hit_tokens_total is None:
            return None
        risen, deadline_s = 0.0, time.monotonic() + patience_s
        while True:
            try:
                now_total = self.probe.read().hit_tokens_total
            except ProbeError:
                now_total = None
            if now_total is not None:
                risen = max(0.0, now_total - before.reading.hit_tokens_total)
            if risen or time.monotonic() >= deadline_s:
                return risen
            time.sleep(min(0.2, patience_s))

    # -- judging -----------------------------------------------------------------------------

    def _judge_page(
        self, page: PageReading | None, engine: str | None, about: Mapping[str, Any]
    ) -> None:
        if page is None:
            if engine == "sglang":
                self._note("info", "SGLang shows metrics only when asked to", "--enable-metrics")
            return
        told = page.sources
        if "hit_tokens_total" not in told:
            loads = any("/v1/loads" in names for names in told.values())
            flag = "--enable-metrics" if loads else None
            self._note(
                "warning",
                "No hit counters: the hit deficit is known from your agents' own answers only",
                flag,
            )
        if "capacity_tokens" not in told:
            where = "; a Dynamo frontend tells it, its workers do not" if engine == "dynamo" else ""
            self._note("warning", f"No KV capacity: it will be learned from misses{where}")
        if any("prefix_cache_queries" in n for n in told.get("query_tokens_total", ())):
            self._note(
                "info",
                "This vLLM counts look-ups, which under pressure are several times the prompt "
                "tokens; newer versions also count prompt tokens",
            )
        interval = _count(about.get("decode_log_interval"))
        if engine == "sglang" and interval is not None and interval > 10:
            self._note(
                "info",
                f"SGLang refreshes its gauges every {interval} decode steps; 10 suits a governor",
                "--decode-log-interval 10",
            )
        if len(page.readings) > 1:
            self._note(
                "info",
                f"{len(page.readings)} KV pools answer here and one governor governs their sum: "
                "keep each agent on one of them (session affinity), or its prefix is lost",
            )
        if page.engine == "dynamo" and page.backend is None:
            self._note(
                "info",
                "The frontend tells the KV pool of one worker. With several workers, govern each "
                "by its own address",
            )

    def _judge_size(self, page: PageReading | None, max_model_len: int | None) -> None:
        pool = page.smallest_capacity_tokens if page else None
        if pool is not None and max_model_len is not None and pool < 2 * max_model_len:
            self._note(
                "info",
                f"The KV pool ({pool:,.0f} tokens) holds fewer than two full contexts of "
                f"{max_model_len:,} tokens: long agents will run one after another",
            )

    def _prefix_caching_is_off(self, engine: str | None) -> None:
        mend = (
            ("start it without --disable-radix-cache", None)
            if engine == "sglang"
            else ("switch it on", "--enable-prefix-caching")
        )
        self._note(
            "error",
            "Prefix caching is off: each step prefills its whole context, whoever runs beside it, "
            f"and there is nothing to keep; {mend[0]}",
            mend[1],
        )

    def _judge_proof(self, proof: CacheProof, engine: str | None, page: PageReading | None) -> None:
        rose = proof.hit_counter_rose_tokens
        if proof.second_cached_tokens is None:
            flags = {
                "vllm": "--enable-prompt-tokens-details",
                "sglang": "--enable-cache-report",
            }
            flag = flags.get((page.backend if page else None) or engine or "")
            self._note(
                "warning",
                "Answers do not say how many prompt tokens were cached, so evictions cannot be "
                "seen agent by agent"
                + ("" if flag else "; vLLM needs --enable-prompt-tokens-details, SGLang "
                   "--enable-cache-report"),
                flag,
            )  # fmt: skip
        elif not proof.works:
            self._note(
                "warning",
                f"The same {proof.prompt_tokens} prompt tokens were sent twice and none was "
                "cached: is prefix caching off, does a router send each request elsewhere, or is "
                "the cache under such pressure right now?",
            )
        if rose == 0 and (proof.works or proof.second_cached_tokens is None):
            self._note(
                "warning",
                "The engine's hit counter did not rise with it: this metrics page may belong to "
                "another replica, or lag behind",
            )

    def _has_error(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def _note(self, level: Level, text: str, flag: str | None = None) -> None:
        self.findings.append(Finding(level=level, text=text, flag=flag))


def _code(
    url: str, page: PageReading | None, proof: CacheProof | None, *, keyed: bool, usable: bool
) -> tuple[str, ...]:
    if not usable:
        return ()
    if page is not None:
        key = ", api_key=key" if keyed else ""
        governor = f'gov = ca.Governor("{url}"{key})'
    elif proof is not None and proof.works:
        governor = 'gov = ca.Governor(law="working_set")  # no metrics: learns from the answers'
    else:
        governor = "gov = ca.Governor(limit=8)  # no signal at all: a fixed cap"
    return ("import concur_agents as ca", governor, "async with gov.agent(task_id) as agent: ...")


def _prompt(max_model_len: int | None, block_size: int | None) -> str:
    """A prompt nobody has sent before, long enough for whole blocks and short enough to fit.

    Hosted APIs cache from 1,024 tokens on; a word is between one token and five.
    """
    words = max(1100, 3 * (block_size or 0))
    if max_model_len is not None:
        words = min(words, max(16, max_model_len // 8))
    body = " ".join(f"line {position}" for position in range(words // 2))
    return f"Check {uuid.uuid4().hex}: {body}. Answer with one word."


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _short(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "..."
