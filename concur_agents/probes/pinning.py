"""Proves that the rank header pins calls: an engine, or a router before it, may ignore it.

Tiny calls are sent to the last rank and to the first, two to each, and the counters of the page say
which ranks served them. Calls that are spread in turn, or that all go to the first rank, do not
pass. Calls of others may run meanwhile, but count as well: if they leave it open where ours were
served, it is tried again a few times.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from concur_agents.core import Reading
from concur_agents.errors import ProbeError
from concur_agents.probes.http import Http, HttpProbe, HttpResponse
from concur_agents.probes.usage import read_usage

RANK_HEADER: Final = "X-data-parallel-rank"
"""Pins a request to a data-parallel rank of vLLM or SGLang."""

RANK_FIELD: Final = "routed_dp_rank"
"""In the body of a completion or chat completion, it does the same for SGLang."""

PinVerdict: TypeAlias = Literal["pinned", "elsewhere", "refused", "unknown"]

_CALLS = 2
_TRIES = 3  # of the calls to one rank, if those of others were counted meanwhile
_SHARE = 0.75  # of what the calls used: two calls in turn leave half of it on the rank
_NAMES = ("data_parallel_rank", "data-parallel-rank", "dp_rank")  # of a rank, in refusals
_COUNTERS = (
    ("query_tokens_total", "prompt_tokens"),
    ("computed_tokens_total", "prompt_tokens"),
    ("generated_tokens_total", "completion_tokens"),
)
"""What counts a call, rank by rank, and the part of its usage that it counts."""

_REFUSED = (
    "Rank {rank} is refused as out of range: has it fewer than {count} engines, or is it a router "
    "whose engines have one rank each? Govern each at its own address; until then one governor "
    "governs their sum"
)
_UNANSWERED = "Pinning cannot be proved: a tiny call answered HTTP {status}, and reported no usage"
_ELSEWHERE = (
    "Calls pinned to rank {rank} were served by rank {served}: "
    f"{RANK_HEADER} is ignored or dropped on the way. Give each engine an address of its own; "
    "until then one governor governs their sum"
)
_DISTURBED = (
    "Pinning cannot be proved while other calls are counted as well: have it proved with "
    "gov.check_pinning() before the first agent"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinProof:
    """Whether calls reach the rank that their header names."""

    ranks: int
    """Data-parallel engines that were expected."""
    verdict: PinVerdict
    """"pinned"; "elsewhere": other ranks served them; "refused": the header was; "unknown"."""
    text: str
    """The verdict as a sentence, with what to do."""
    by_body: bool = False
    """Not the header pins calls, but `RANK_FIELD` in the body."""

    @property
    def works(self) -> bool:
        """Whether it was proved."""
        return self.verdict == "pinned"


def prove_pinning(
    http: Http,
    probe: HttpProbe,
    *,
    ranks: int | None = None,
    model: str | None = None,
    patience_s: float = 3.0,
) -> PinProof:
    """Sends four tiny calls; see the module.

    Args:
        http: calls the engine.
        probe: reads the page of the same engine.
        ranks: data-parallel engines there; None: as many as the page shows.
        model: serves the calls; None: the first one that is served.
        patience_s: time that the counters may take to show the calls [s].
    """
    try:
        return _prove(http, probe, ranks, model, patience_s)
    except ProbeError as error:
        return PinProof(ranks=ranks or 0, verdict="unknown", text=f"Pinning: {error}")


def _prove(
    http: Http, probe: HttpProbe, ranks: int | None, model: str | None, patience_s: float
) -> PinProof:
    page = probe.read_page()
    count = len(page.readings) if ranks is None else ranks

    def proof(verdict: PinVerdict, text: str) -> PinProof:
        return PinProof(ranks=count, verdict=verdict, text=text)

    wanted = [str(rank) for rank in range(count)]
    if count < 2 or any(rank not in page.readings for rank in wanted):
        return proof(
            "unknown",
            f"Pinning cannot be proved: the page has {len(page.readings)} KV pools and not one "
            f"for each of {count} ranks; SGLang shows them with "
            "--enable-metrics-for-all-schedulers",
        )
    name = model or _first_model(http) or page.model
    if name is None:
        return proof("unknown", "Pinning cannot be proved: no model is named")
    verdict, text = _pins(http, probe, wanted, name, patience_s, by_body=False)
    if verdict == "elsewhere" and page.engine == "sglang":
        found, said = _pins(http, probe, wanted, name, patience_s, by_body=True)
        if found == "pinned":
            return PinProof(ranks=count, verdict=found, text=said, by_body=True)
    return proof(verdict, text)


def _pins(
    http: Http,
    probe: HttpProbe,
    ranks: list[str],
    model: str,
    patience_s: float,
    *,
    by_body: bool,
) -> tuple[PinVerdict, str]:
    """Whether the last rank and the first take the calls that name them."""
    for rank in (ranks[-1], ranks[0]):
        for _ in range(_TRIES):
            verdict, text = _try(http, probe, ranks, rank, model, patience_s, by_body=by_body)
            if verdict != "disturbed":
                break
        if verdict == "disturbed":
            return "unknown", text
        if verdict != "pinned":
            return verdict, text
    way = f"{RANK_FIELD} in the body" if by_body else RANK_HEADER
    return "pinned", f"{way} pins calls to each of {len(ranks)} ranks"


def _try(
    http: Http,
    probe: HttpProbe,
    ranks: list[str],
    rank: str,
    model: str,
    patience_s: float,
    *,
    by_body: bool,
) -> tuple[PinVerdict | Literal["disturbed"], str]:
    """Sends the calls to one rank.  Calls of others may disturb it."""
    before = probe.read_page().readings
    counter = next(
        (pair for pair in _COUNTERS if all(_known(before, each, pair[0]) for each in ranks)), None
    )
    if counter is None:
        return "unknown", "Pinning cannot be proved: no counter has all ranks"
    used: list[int] = []
    for _ in range(_CALLS):
        answer = _call(http, model, rank, by_body=by_body)
        if answer.status >= 400 and names_rank(answer.text):
            return "refused", _REFUSED.format(rank=rank, count=len(ranks))
        usage = read_usage(_json(answer.text).get("usage")) if answer.status == 200 else None
        if usage is None:
            return "unknown", _UNANSWERED.format(status=answer.status)
        used.append(getattr(usage, counter[1]))
    sent = sum(used)
    risen = _risen(probe, before, ranks, counter[0], sent, patience_s)
    others = sum(risen[each] for each in ranks if each != rank)
    if risen[rank] + others < _SHARE * sent:
        text = f"Pinning cannot be proved: the counters did not rise within {patience_s:g} s"
        return "unknown", text
    if others < min(used):  # so none of ours was counted there
        return "pinned", ""
    if risen[rank] < _SHARE * sent:
        served = ", ".join(each for each in ranks if risen[each] and each != rank)
        return "elsewhere", _ELSEWHERE.format(rank=rank, served=served)
    return "disturbed", _DISTURBED


def hidden_ranks(http: Http) -> int:
    """Data-parallel engines that SGLang says it has, whatever its page shows; 1: it says nothing.

    Raises:
        ProbeError: it cannot be reached.
    """
    for path in ("/server_info", "/get_server_info"):
        answer = http.get(path)
        found = _json(answer.text) if answer.status == 200 else {}
        count = found.get("dp_size")
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return 1


def names_rank(answer: str) -> bool:
    """Whether a refusal is about the rank."""
    text = answer.lower()
    return "out of range" in text or any(name in text for name in _NAMES)


def _risen(
    probe: HttpProbe,
    before: Mapping[str, Reading],
    ranks: list[str],
    counter: str,
    sent: int,
    patience_s: float,
) -> dict[str, float]:
    """How much the counter of each rank has risen, once the calls have been counted."""
    deadline_s = time.monotonic() + patience_s
    while True:
        now = probe.read_page().readings
        risen = {
            rank: (getattr(now[rank], counter) or 0.0) - getattr(before[rank], counter)
            for rank in ranks
            if rank in now
        }
        risen = {rank: max(0.0, risen.get(rank, 0.0)) for rank in ranks}
        if sum(risen.values()) >= sent or time.monotonic() >= deadline_s:
            return risen
        time.sleep(min(0.2, patience_s))


def _call(http: Http, model: str, rank: str, *, by_body: bool) -> HttpResponse:
    small: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0.0}
    if by_body:
        small[RANK_FIELD] = int(rank)
    prompt = f"Check {uuid.uuid4().hex}: answer with one word."
    headers = {} if by_body else {RANK_HEADER: rank}
    chat = {"messages": [{"role": "user", "content": prompt}]}
    answer = http.post("/v1/chat/completions", small | chat, headers=headers)
    if answer.status in (400, 404, 405, 422) and not names_rank(answer.text):
        return http.post("/v1/completions", small | {"prompt": prompt}, headers=headers)
    return answer


def _first_model(http: Http) -> str | None:
    answer = http.get("/v1/models")
    data = _json(answer.text).get("data") if answer.status == 200 else None
    for each in data if isinstance(data, list) else ():
        if isinstance(each, dict) and isinstance(each.get("id"), str):
            return str(each["id"])
    return None


def _known(readings: Mapping[str, Reading], rank: str, counter: str) -> bool:
    return rank in readings and getattr(readings[rank], counter) is not None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
