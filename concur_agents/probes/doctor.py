"""Examines an endpoint over HTTP: the work behind `concur doctor`.

Nothing is raised for an endpoint with a fault: each fault becomes a finding of the `Diagnosis`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from concur_agents.core import Usage
from concur_agents.errors import ProbeError
from concur_agents.probes.connection import Headers, Verify, read_verify
from concur_agents.probes.diagnosis import MEANINGS, CacheProof, Diagnosis, Finding, Level, Signal
from concur_agents.probes.findings import (
    caching_off_finding,
    page_findings,
    pinning_finding,
    proof_findings,
    size_findings,
)
from concur_agents.probes.http import Http, HttpProbe
from concur_agents.probes.page import SIGNALS, PageReading
from concur_agents.probes.pinning import RANK_FIELD, RANK_HEADER, PinProof, prove_pinning
from concur_agents.probes.usage import read_usage


def diagnose(
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    timeout_s: float = 30.0,
    send: bool = True,
    patience_s: float = 2.0,
    headers: Headers | None = None,
    verify: Verify = True,
) -> Diagnosis:
    """Examines an endpoint.

    Args:
        url: address of the engine, with or without `/v1`.
        api_key: bearer token, if the endpoint needs one.
        model: the model to test; default: the first one served.
        timeout_s: longest wait for one answer [s].
        send: whether to send two tiny completions, to test cached tokens.
        patience_s: time that the engine's counters may take to show these two [s].
        headers: sent with each request.
        verify: a CA's file, an SSL context, or False; see `HttpProbe`.

    Raises:
        ConfigError: `url` is not an http(s) address, or a header or `verify` cannot be used.
    """
    trust = read_verify(verify)
    with (
        HttpProbe(
            url,
            api_key=api_key,
            model=model,
            timeout_s=min(timeout_s, 5.0),
            headers=headers,
            verify=trust,
        ) as probe,
        Http(url, api_key=api_key, timeout_s=timeout_s, headers=headers, verify=trust) as http,
    ):
        return _Examination(http, probe, keyed=api_key is not None).run(
            model, send=send, patience_s=patience_s
        )


@dataclass
class _Examination:
    """One examination: its connections, and the findings so far, in order."""

    http: Http
    probe: HttpProbe
    keyed: bool
    """The caller gave a key."""
    findings: list[Finding] = field(default_factory=list)

    def run(self, model: str | None, *, send: bool, patience_s: float) -> Diagnosis:
        page = self._page()
        served = self._models()
        names = tuple(each["id"] for each in served)
        chosen = self._choose(model, names, page)
        owner = next((each["owned_by"] for each in served if each["id"] == chosen), None)
        engine = page.engine if page else owner if owner in ("vllm", "sglang") else None
        about = self._about(engine) if page or served else {}
        max_model_len = next(
            (each["max_model_len"] for each in served if each["id"] == chosen), None
        ) or (page.max_model_len if page else None)
        prefix_caching = page.prefix_caching if page else None
        if prefix_caching is None and isinstance(about.get("disable_radix_cache"), bool):
            prefix_caching = not about["disable_radix_cache"]

        if page is None and chosen is None and not self._has_error():
            self._note("error", "Neither metrics nor models: this is not a serving engine")
        self._add(page_findings(page, engine, about))
        self._add(size_findings(page, max_model_len))
        proof, pinning = None, None
        if prefix_caching is False:
            self._add([caching_off_finding(engine)])
        elif send and chosen is not None:
            proof = self._prove(chosen, max_model_len, page, patience_s)
            if page is not None and len(page.readings) > 1 and not self._has_error():
                pinning = prove_pinning(self.http, self.probe, model=chosen, patience_s=patience_s)
                if pinning.works and proof is not None and proof.second_cached_tokens == 0:
                    # Each call may have gone to another rank, which says nothing about its cache.
                    pinned = self._prove(chosen, max_model_len, page, patience_s, pinning)
                    proof = pinned or proof
            if proof is not None:
                self._add(proof_findings(proof, engine, page))
                prefix_caching = prefix_caching or proof.works or None
            if pinning is not None:
                self._add([pinning_finding(pinning)])
        elif not send:
            self._note("info", "Cached tokens in answers were not tested (--no-send)")
        reading = page.reading if page else None
        return Diagnosis(
            url=self.probe.url,
            engine=engine,
            backend=page.backend if page else None,
            version=_text(about.get("version")) or (page.version if page else None),
            model=chosen,
            models=names or (page.models if page else ()),
            max_model_len=max_model_len,
            capacity_tokens=reading.capacity_tokens if reading else None,
            smallest_capacity_tokens=page.smallest_capacity_tokens if page else None,
            pools=len(page.readings) if page else 0,
            block_size=page.block_size if page else None,
            prefix_caching=prefix_caching,
            signals=tuple(
                Signal(
                    name=name,
                    meaning=MEANINGS[name],
                    value=getattr(reading, name) if reading else None,
                    sources=tuple(page.sources.get(name, ())) if page else (),
                )
                for name in SIGNALS
            ),
            proof=proof,
            pinning=pinning,
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
            wish = (
                f"refuses the key that was given (HTTP {answer.status})"
                if self.http.is_keyed
                else f"needs a key (HTTP {answer.status}): give --api-key"
            )
            self._note("error", f"/v1/models {wish}")
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
                self._note("error", f"{model!r} is not served; served are {', '.join(served)}")
                return None
            return model
        if not served:
            return None
        # The model that the page names is the one that its numbers are about.
        return page.model if page and page.model in served else served[0]

    def _about(self, engine: str | None) -> dict[str, Any]:
        """Version and switches, where the engine has a page for them; else {}."""
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
        self,
        model: str,
        max_model_len: int | None,
        page: PageReading | None,
        patience_s: float,
        pinning: PinProof | None = None,
    ) -> CacheProof | None:
        prompt = _prompt(max_model_len, page.block_size if page else None)
        answers = []
        for _ in range(2):
            began_s = time.monotonic()
            usage = self._complete(model, prompt, pinning)
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

    def _complete(self, model: str, prompt: str, pinning: PinProof | None) -> Usage | None:
        """Sends one tiny request; as plain text if the model has no chat template."""
        small = {"model": model, "max_tokens": 1, "temperature": 0.0}
        headers = {}
        if pinning is not None and pinning.by_body:
            small[RANK_FIELD] = 0
        elif pinning is not None:
            headers[RANK_HEADER] = "0"
        ways = (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
            ("/v1/completions", {"prompt": prompt}),
        )
        trouble = ""
        for path, body in ways:
            try:
                answer = self.http.post(path, small | body, headers=headers)
            except ProbeError as error:
                self._note("error", f"A tiny request failed: {error}")
                return None
            if answer.status == 200:
                usage = read_usage(_json(answer.text).get("usage"))
                if usage is None:
                    self._note(
                        "error", f"{path} answered without `usage`, so nothing can be counted"
                    )
                return usage
            trouble = f"{path} answered HTTP {answer.status}: {_short(answer.text)}"
            if answer.status not in (400, 404, 405, 422):
                break
        self._note("error", f"A tiny request failed: {trouble}")
        return None

    def _hits_since(self, before: PageReading | None, patience_s: float) -> float | None:
        """Rise of the hit counter [tokens]; waits a little, because engines report late."""
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

    def _has_error(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def _add(self, findings: Iterable[Finding]) -> None:
        self.findings.extend(findings)

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
        governor = "gov = ca.Governor(limit=8)  # no signal: a fixed cap"
    return ("import concur_agents as ca", governor, "async with gov.agent(task_id) as agent: ...")


def _prompt(max_model_len: int | None, block_size: int | None) -> str:
    """A prompt that is new to the engine, spans whole blocks and fits the context.

    Hosted APIs cache from 1,024 tokens on; a word has one to five tokens.
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
