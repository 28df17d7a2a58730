"""The agents, steps and tools of a governor as OpenTelemetry spans. Needs the extra `otel`.

    from concur_agents.observe.otel import trace

    trace(gov)          # to the global tracer provider, which your application sets up

Each agent is a span (`invoke_agent`, its id in `gen_ai.agent.id`); below it are its steps (`chat`),
tool blocks (`execute_tool pytest`) and nested agents. Waits are events on the span of the agent:
`concur.queued`, `concur.admitted`, `concur.paused`, `concur.resumed`, `concur.overdue`.

Attribute names follow the GenAI semantic conventions. They are written out here, because the
package with their constants marks all of them as moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from concur_agents._extras import missing_extra
from concur_agents._text import shown_id
from concur_agents._version import __version__
from concur_agents.runtime.events import Event
from concur_agents.runtime.host import Host

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
AGENT_ID = "gen_ai.agent.id"
AGENT_NAME = "gen_ai.agent.name"
TOOL_NAME = "gen_ai.tool.name"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
WAITED = "concur.waited_s"
WAITED_TOTAL = "concur.waited_total_s"
PAUSES = "concur.pauses"
LAW = "concur.law"
POOL = "concur.pool"


def trace(
    governor: Host,
    tracer_provider: TracerProvider | None = None,
    *,
    agent_name: str | None = None,
) -> Callable[[], None]:
    """Makes spans of the agents of a governor from now on.

    Spans hold ids, counts and times, but no prompts and no answers.

    Args:
        governor: the governor.
        tracer_provider: None: the global one.
        agent_name: the kind of the agents, such as "coder", for span names. It is not an id,
            because then each of thousands of agents would have its own span name.

    Returns:
        The function that stops it and ends the open spans.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    try:
        from opentelemetry import trace as api
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    tracer = api.get_tracer("concur_agents", __version__, tracer_provider)
    epoch_s = time.time() - governor.snapshot().at_s
    spans = _Spans(tracer, governor.law.name, agent_name, governor.probe, epoch_s)
    unsubscribe = governor.on_event(spans.note)

    def stop() -> None:
        unsubscribe()
        spans.end_all(int(time.time() * 1e9))

    return stop


class _Life:
    """The open spans of one agent."""

    def __init__(self, span: Span, context: Any) -> None:
        self.span = span
        self.context = context
        self.steps: list[Span] = []  # the oldest ends first, because events do not name the step
        self.tools: dict[str, list[Span]] = {}
        self.waited_s = 0.0
        self.pauses = 0

    def end(self, at_ns: int) -> None:
        for span in (*self.steps, *(span for spans in self.tools.values() for span in spans)):
            span.end(at_ns)
        self.span.set_attribute(WAITED_TOTAL, self.waited_s)
        self.span.set_attribute(PAUSES, self.pauses)
        self.span.end(at_ns)


class _Spans:
    def __init__(
        self, tracer: Tracer, law: str, name: str | None, probe: object, epoch_s: float
    ) -> None:
        self._tracer = tracer
        self._law = law
        self._name = name
        self._probe = probe  # knows the engine after the first reading
        self._epoch_s = epoch_s  # offset of the governor's clock from 1970 [s]
        self._lives: dict[str, _Life] = {}

    def note(self, event: Event) -> None:
        """Turns an event of the governor into spans."""
        at_ns = int((self._epoch_s + event.at_s) * 1e9)
        if event.kind == "closed":
            self.end_all(at_ns)
        elif event.agent is None:
            return
        elif event.kind == "arrived":
            self._arrive(event, event.agent, at_ns)
        elif event.agent in self._lives:
            self._live(event, self._lives[event.agent], at_ns)

    def end_all(self, at_ns: int) -> None:
        """Ends every open span."""
        while self._lives:
            self._lives.popitem()[1].end(at_ns)

    def _arrive(self, event: Event, agent: str, at_ns: int) -> None:
        from opentelemetry.trace import set_span_in_context

        parent = self._lives.get(event.parent or "")
        attributes = {OPERATION: "invoke_agent", AGENT_ID: shown_id(agent), LAW: self._law}
        span = self._tracer.start_span(
            "invoke_agent" if self._name is None else f"invoke_agent {self._name}",
            context=None if parent is None else parent.context,
            attributes=attributes | self._common(),
            start_time=at_ns,
        )
        span.add_event("concur.queued", timestamp=at_ns)
        self._lives[agent] = _Life(span, set_span_in_context(span))

    def _common(self) -> dict[str, str]:
        """The provider and the agent name, which the conventions require."""
        # "openai" is the name of the API, for an engine that is not known yet.
        engine = getattr(self._probe, "engine", None) or "openai"
        return {PROVIDER: engine} | ({} if self._name is None else {AGENT_NAME: self._name})

    def _live(self, event: Event, life: _Life, at_ns: int) -> None:
        from opentelemetry.trace import SpanKind

        kind = event.kind
        if kind in ("admitted", "resumed", "paused", "overdue", "suspended", "resume_asked"):
            attributes = {} if event.waited_s is None else {WAITED: event.waited_s}
            life.span.add_event(f"concur.{kind}", attributes, at_ns)
            if event.pool is not None and kind in ("admitted", "resumed"):
                life.span.set_attribute(POOL, event.pool)
            if kind in ("admitted", "resumed"):
                life.waited_s += event.waited_s or 0.0
            life.pauses += kind == "paused"
        elif kind == "step_began":
            life.steps.append(
                self._tracer.start_span(
                    "chat",
                    context=life.context,
                    kind=SpanKind.CLIENT,
                    attributes={OPERATION: "chat", AGENT_ID: shown_id(event.agent or "")}
                    | ({} if event.pool is None else {POOL: event.pool})
                    | self._common(),
                    start_time=at_ns,
                )
            )
        elif kind == "step_withdrawn" and life.steps:
            life.steps.pop()  # not ended, so never exported
        elif kind == "step_ended" and life.steps:
            span = life.steps.pop(0)
            if event.usage is not None:
                span.set_attribute(INPUT_TOKENS, event.usage.prompt_tokens)
                span.set_attribute(OUTPUT_TOKENS, event.usage.completion_tokens)
                if event.usage.cached_tokens is not None:
                    span.set_attribute(CACHED_TOKENS, event.usage.cached_tokens)
            span.end(at_ns)
        elif kind == "tool_began":
            life.tools.setdefault(event.reason, []).append(
                self._tracer.start_span(
                    f"execute_tool {shown_id(event.reason)}",
                    context=life.context,
                    attributes={OPERATION: "execute_tool", TOOL_NAME: shown_id(event.reason)},
                    start_time=at_ns,
                )
            )
        elif kind == "tool_ended" and life.tools.get(event.reason):
            life.tools[event.reason].pop(0).end(at_ns)
        elif kind == "left":
            self._lives.pop(event.agent or "").end(at_ns)
