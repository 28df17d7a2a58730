"""The door most users come through: `Governor`, and its shortcuts to what stands around it.

Everything a governor does is in `runtime/host.py`. The methods here are shortcuts: each imports
what it needs when it is first called, so that a framework is loaded only where it is used. Nothing
below this file imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from concur_agents.runtime.host import Host

T = TypeVar("T")


class Governor(Host):
    """Decides which agents may run, so that their contexts stay in the engine's KV cache.

        gov = Governor("http://localhost:8000")     # engine recognised and polled
        gov = Governor(["http://gpu1:8000", "http://gpu2:8000"])    # two replicas
        gov = Governor("http://router:8000", pools=["http://gpu1:8000", "http://gpu2:8000"])
        gov = Governor(limit=8)                     # no endpoint: a fixed cap of 8 agents

    Usable at once from many threads and event loops. It starts its thread when the first agent
    needs it. `with` (or `async with`, or `close`) ends it; one that is dropped ends by itself.

    Args:
        url: base URL of the serving engine, with or without `/v1`; a list of several, each of
            which is a pool: agents are spread over them, and each stays with its pool.
        pools: the engines behind the URL, which is then a router that picks one: their own
            addresses, or a dictionary of these by the names that the router's answers have. Their
            pages are read there; all calls go to the router, and answers say where an agent is.
        ranks: data-parallel engines behind each URL (vLLM's and SGLang's `--data-parallel-size`):
            each is a pool, and calls are pinned to it by a header. None: where the page shows
            several, four tiny calls prove whether they can be pinned, and until then, or if they
            cannot, one pool has the sum; 1: one pool in any case, and no calls.
        law: a name (see `concur laws`) or a law from `make_law`. Default: `working_set`; with
            `limit`: a fixed cap.
        limit: at most this many active agents, whatever the engine says.
        probe: reads the engine in place of the one made from `url`.
        api_key: sent to the metrics endpoint as a bearer token. With several addresses it is the
            key of all of them: calls to another host than the client's carry it, too.
        metrics_headers: further headers for the metrics endpoint, by name.
        metrics_verify: how its certificate is checked: an SSL context, the file or folder of a CA,
            or False for any certificate.
        poll_interval_s: time [s] between readings.
        max_wait_s: an agent that has waited for longer goes first; None: no bound.
        max_open: at most this many agents begun and not finished; None: no bound.
        blind_after_s: after so long [s] without a reading the safe limit applies.
        blind_agents: the safe limit [agents].
        ungoverned: what governed clients do with a call that has no agent: let it "pass" with one
            warning, take it for an "agent" of its own, or raise an "error".
        routes: further paths of LLM calls, such as "/rollout/step", beside the usual ones. A path
            is matched by its segments, wherever they stand in a request's path.
        record: a file for the flight recorder; see `record`.
        shadow: a law that decides beside the one in force, without effect: it is recorded, and
            shown by `snapshot`.
        socket: a unix socket on which `concur watch` may look on; "auto": one of its own in a
            folder of yours. None: nothing listens.
        shared: a daemon decides for all processes that name it: "unix:PATH" or "tcp://HOST:PORT"
            of a `concur serve`; "auto": that of this machine and these engines, which the first
            process starts; what `concur_agents.ray` makes. None: this process decides for itself.
        token: what that daemon asks for over TCP.
        background: False: no thread of its own; the host calls `beat` when it says so
            (simulated time).
        clock: monotonic time [s].

    Raises:
        ConfigError: an option is out of its range, or two contradict each other.
    """

    def wrap(
        self,
        thing: T,
        *,
        key: Callable[..., object] | None = None,
        priority: int = 0,
        detached: bool = False,
    ) -> T:
        """A governed version of something, of the same type; what is given stays as it is.

        Args:
            thing: a client of `openai` or `httpx`, whose calls then wait for the agent they are
                made in; a compiled LangGraph graph, each of whose runs then is an agent; or an
                agent function, as `concur_agents.governed` does.
            key: graphs and functions: the agent's id, from the run's config or from the
                function's arguments. None: a graph's `thread_id`, else its `run_id`.
            priority: graphs and functions: higher goes first.
            detached: graphs and functions: takes a place of its own even inside of another agent.

        Raises:
            ConfigError: it is none of these.
        """
        from concur_agents.adapters import wrap

        options = {"key": key, "priority": priority, "detached": detached}
        wrapped: T = wrap.wrap(self, thing, **options)
        return wrapped

    def http_client(
        self,
        kind: Literal["sync", "async"],
        *,
        module: Literal["httpx", "httpx2"] | None = None,
        **options: Any,
    ) -> Any:
        """A governed HTTP client for libraries that take one, such as `ChatOpenAI`.

        An async client belongs to the event loop that uses it first: make one per loop.

        Args:
            kind: "sync" or "async".
            module: the library it has to come from; None: the one that the installed openai uses.
            options: for the client: `timeout`, `proxy`, `verify`, ...

        Raises:
            ConfigError: `kind` is neither of the two.
        """
        from concur_agents.adapters.http import http_client

        return http_client(self, kind, module=module, **options)

    def rate_limiter(self) -> Any:
        """For `rate_limiter=` of a LangChain model: waits until the current agent may run."""
        from concur_agents.adapters.langchain import RateLimiter

        return RateLimiter(self)

    def middleware(self) -> Any:
        """For `middleware=` of LangChain's `create_agent`: each model call is one step."""
        from concur_agents.adapters.langchain import middleware

        return middleware(self)

    def executor(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> ThreadPoolExecutor:
        """A `ThreadPoolExecutor` in which each task is an agent.

        Args:
            max_workers: at most this many threads, whatever the governor would allow; None: no
                bound.
            thread_name_prefix: as for `ThreadPoolExecutor`.
            initializer: called in each thread at its start.
            initargs: its arguments.

        Raises:
            ConfigError: `max_workers` is out of its range.
        """
        from concur_agents.batch.executor import GovernedExecutor

        return GovernedExecutor(self, max_workers, thread_name_prefix, initializer, initargs)

    def _repr_html_(self) -> str:
        """For notebooks: where its agents stand, and why those that wait do."""
        from concur_agents.observe.frame import frame_of
        from concur_agents.observe.html import notebook_html

        return notebook_html(frame_of(self))

    def _listen(self, socket: str | os.PathLike[str]) -> Callable[[], None]:
        from concur_agents.observe.socket import listen

        return listen(self, socket)
