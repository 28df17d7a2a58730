"""A serving engine in virtual time: continuous batching, chunked prefill, prefix cache, preemption.

It schedules as vLLM V1 does. A step has a token budget; running decodes take one token each, then
the prompt that is being prefilled takes its chunk, then waiting requests are let in first come,
first served, while budget, sequence slots and blocks last (the first that does not fit holds up all
behind it). When decodes need blocks and none is free, the latest admitted sequence is preempted:
its blocks go back to the cache, it returns to the head of the queue and is computed again.

    arriving --(request overhead)--> waiting --> prefill --> decode --> finished
                                        ^-- preempted --'------'

What a host tier has of a prompt (`host_tier`) comes back in the step that lets the request in. The
batch waits for it; real engines copy beside the computation and are faster.

A prompt that got only part of what it needs has used up the budget, so none came in behind it:
at most one sequence is in mid-prefill, and it is the latest admitted. A step costs O(sequences that
join or leave), not O(batch) (`decodes`), and a stretch of steps in which no request joins, leaves
or is preempted is taken at once, in closed form (`step_time`).

A request submitted at an instant joins the first step that starts at or after it (plus the request
overhead). No clock, no I/O, no randomness: the caller says how far to run.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from concur_agents.sim.cache import Run
from concur_agents.sim.counters import EngineCounters, Totals
from concur_agents.sim.decodes import Decodes
from concur_agents.sim.host_tier import TieredCache, make_cache
from concur_agents.sim.profile import Profile
from concur_agents.sim.request import Event, Request, Sequence
from concur_agents.sim.step_time import StepTime

__all__ = ["Engine", "EngineCounters", "Event", "Request", "Run"]

FOREVER = 1 << 62  # steps


class Engine:
    """One replica. Drive it with `submit`, ask `next_event_s`, run it with `advance`.

    `max_jump` bounds how many decode steps are taken at once; the result is the same for any value.
    """

    def __init__(self, profile: Profile, *, start_s: float = 0.0, max_jump: int = FOREVER) -> None:
        self.profile = profile
        self.cache = make_cache(profile)
        self._now_s = start_s  # how far the caller has run it
        self._max_jump = max_jump
        self._clock = 0  # start of the next step (or of the one in flight) [fs since start_s]
        self._step: _Step | None = None  # a composed step in flight; pure decode steps need none
        self._pending: list[Event] = []  # preemptions of a step composed ahead of `advance`
        self._sequences: dict[str, Sequence] = {}  # all that are not finished
        # A heap by the instant at which they reach the queue:
        self._arrivals: list[tuple[float, int, Sequence]] = []
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._aborts: deque[tuple[float, Sequence]] = deque()
        self._order = 0  # counts submissions and admissions, to break ties
        self._blocked = False  # the head of the queue cannot be let in until something is freed
        self._prefilling: Sequence | None = None
        self._decodes = Decodes(profile.block_size)
        self._time = StepTime(profile, start_s)
        self._totals = Totals()

    def __repr__(self) -> str:
        return (
            f"<Engine {self.profile.name} at {self._now_s:.3f} s: {len(self._running)} running, "
            f"{len(self._waiting) + len(self._arrivals)} waiting, {self.cache.used_blocks} of "
            f"{self.cache.kv_blocks} blocks used>"
        )

    # -- what the caller does

    def submit(self, request: Request) -> None:
        """Send a request; `request.at_s` in the past means now.

        Raises:
            ValueError: its id is in use, it is empty, or it can never fit.
        """
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use")
        request.check(self.profile)
        self._order += 1
        sequence = Sequence(request)
        self._sequences[request.id] = sequence
        ready_s = max(request.at_s, self._now_s) + self.profile.request_overhead_s
        heapq.heappush(self._arrivals, (ready_s, self._order, sequence))
        if self._step is not None and ready_s <= self._time.at_s(self._clock):
            # Still in time for the step that `next_event_s` had to compose in order to look ahead.
            self._enqueue()
            self._admit(self._step)

    def cancel(self, request_id: str, now: float) -> None:
        """Forget a request: at once if it is not running, else at the next step. Unknown ids are
        ignored.
        """
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        sequence.cancelled = True
        if sequence in self._running:
            self._aborts.append((max(now, self._now_s), sequence))
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
            self._blocked = False
        else:
            self._arrivals = [entry for entry in self._arrivals if entry[2] is not sequence]
            heapq.heapify(self._arrivals)

    def next_event_s(self) -> float | None:
        """When to call `advance` next; None: idle.

        Nothing can happen before it. It is the earliest event unless a step without one comes first
        (a chunk of a long prompt, an arrival): then `advance` returns nothing, and the next answer
        is later.
        """
        if self._step is None:
            start = self._boundary()
            if start is None:
                return None
            if self._time.at_s(start) > self._now_s:
                return self._time.at_s(start)
            self._step = self._compose(self._pending)
            if self._step is None:
                return self._time.at_s(self._after(self._stretch(math.inf)))
        return self._time.at_s(self._step.end)

    def advance(self, to_s: float) -> list[Event]:
        """Run all steps that end by `to_s`; what happened in them, in order of time."""
        events, self._pending = self._pending, []
        self._now_s = max(self._now_s, to_s)
        while True:
            if self._step is None:
                start = self._boundary()
                if start is None or self._time.at_s(start) >= to_s:
                    break
                self._step = self._compose(events)
            if self._step is None:
                steps = self._stretch(to_s)
                if not steps:
                    break
                self._decode(steps, events)
            elif self._time.at_s(self._step.end) <= to_s:
                self._complete(self._step, events)
            else:
                break
        return events

    def progress(self, request_id: str) -> int:
        """Output tokens of an unfinished request so far.

        Raises:
            KeyError: no such request, or it has finished.
        """
        sequence = self._sequences[request_id]
        if sequence.joined_tick is None:
            return sequence.generated
        return sequence.generated + self._decodes.tick - sequence.joined_tick

    def counters(self) -> EngineCounters:
        """The metrics page, as of the last step that ended."""
        size, cache = self.profile.block_size, self.cache
        tier = cache if isinstance(cache, TieredCache) else None
        return EngineCounters(
            at_s=self._now_s,
            capacity_tokens=self.profile.capacity_tokens,
            block_size=self.profile.block_size,
            kv_blocks=self.profile.kv_blocks,
            kv_usage=self.cache.used_blocks / self.cache.kv_blocks,
            running=len(self._running),
            waiting=len(self._waiting)
            + sum(ready_s <= self._now_s for ready_s, _, _ in self._arrivals),
            evicted_tokens_total=cache.evicted_blocks_total * size,
            stored_tokens_total=tier.host_stored_blocks_total * size if tier else 0,
            host_capacity_tokens=tier.host_blocks * size if tier else 0,
            host_used_tokens=tier.host_used_blocks * size if tier else 0,
            steps_total=self._decodes.tick,
            **vars(self._totals),
        )

    def reset_cache(self, *, tier: bool = True) -> None:
        """Forget all cached content that no running request holds; `tier`: the host's as well."""
        self.cache.reset(tier=tier)

    def halt(self, until_s: float) -> None:
        """Compute nothing until then, as while weights change; the step in flight ends later."""
        until = self._time.clock_at(until_s)
        if self._step is None:
            self._clock = max(self._clock, until)
        else:
            self._step.end += max(0, until - self._time.clock_at(self._now_s))

    def restart(self) -> None:
        """Crash and come back at once: cache and counters start anew, and whatever was in flight is
        sent again.
        """
        self.cache = make_cache(self.profile)
        unfinished = [s for s in (*self._running, *self._waiting) if not s.cancelled]
        self._running.clear()
        self._waiting.clear()
        self._aborts.clear()
        self._decodes = Decodes(self.profile.block_size)
        self._totals = Totals()
        self._step = self._prefilling = None
        self._blocked = False
        self._clock = self._time.clock_at(self._now_s)
        for sequence in unfinished:
            request = sequence.request
            request.cached_tokens = request.scheduled_s = request.first_token_s = None
            self._sequences[request.id] = fresh = Sequence(request)
            self._order += 1
            heapq.heappush(
                self._arrivals, (self._now_s + self.profile.request_overhead_s, self._order, fresh)
            )

    # -- time

    def _boundary(self) -> int | None:
        """When the next step starts if no other request comes; None: never."""
        while True:
            self._receive()
            if self._running or self._waiting:
                return self._clock
            if not self._arrivals:
                return None
            start = self._time.clock_at(self._arrivals[0][0])
            if self._time.at_s(start) > self._now_s:
                return start
            self._clock = start

    def _receive(self) -> None:
        """Between two steps: take note of what has been cancelled and what has come."""
        at_s = self._time.at_s(self._clock)
        while self._aborts and self._aborts[0][0] <= at_s:
            sequence = self._aborts.popleft()[1]
            if sequence in self._running:
                self._vacate(sequence)
        self._enqueue()

    def _enqueue(self) -> None:
        at_s = self._time.at_s(self._clock)
        while self._arrivals and self._arrivals[0][0] <= at_s:
            self._waiting.append(heapq.heappop(self._arrivals)[2])

    # -- a step that prefills, admits or preempts

    def _compose(self, events: list[Event]) -> _Step | None:
        """Decide what runs in the step that starts now; None: just the decodes, see `_stretch`."""
        preempted = False
        while self._decodes.blocks_next > self.cache.free_blocks:
            self._preempt(events)
            preempted = True
        if (
            not preempted
            and self._prefilling is None
            and (self._blocked or not self._waiting)
            and self._decodes.count
        ):
            return None
        self.cache.take(self._decodes.blocks_next)
        step = _Step(
            budget=self.profile.max_batched_tokens - self._decodes.count,
            end=self._after(1),
        )
        if self._prefilling is not None and not self._chunk(self._prefilling, step):
            self._preempt(events)
            preempted = True
        if preempted:
            step.budget = 0  # a step that preempts lets no request in
        self._admit(step)
        return step

    def _admit(self, step: _Step) -> None:
        """Let in from the head of the queue while there is budget and it fits."""
        while step.budget and self._waiting and not self._blocked:
            sequence = self._waiting[0]
            hit = self.cache.look_up(sequence.runs, sequence.known)
            cached = hit.tokens + hit.restored_tokens
            reach = cached + min(step.budget, sequence.known - cached)
            if self.profile.reserve_full_prompt:
                reach = sequence.known
            need = self.cache.blocks(reach) - hit.tokens // self.profile.block_size
            if (
                len(self._running) >= self.profile.max_num_seqs
                or need > self.cache.free_blocks - hit.reclaimed_blocks
            ):
                self._blocked = True
                return
            self._waiting.popleft()
            self._running[sequence] = None
            self._order += 1
            sequence.order = self._order
            sequence.holding = self.cache.hold(sequence.runs, hit.tokens)
            if hit.restored_tokens:
                self.cache.grow(sequence.holding, cached)  # there is room: `reach` is beyond it
                step.end += self._time.restore_fs(hit.restored_tokens)
                self._totals.restored_tokens_total += hit.restored_tokens
            request = sequence.request
            if request.scheduled_s is None:
                request.scheduled_s = self._time.at_s(self._clock)
                request.cached_tokens = cached
                request.restored_tokens = hit.restored_tokens
                self._totals.query_tokens_total += sequence.prompt_tokens
                self._totals.hit_tokens_total += hit.tokens
                self._totals.host_hit_tokens_total += hit.restored_tokens
            self._chunk(sequence, step)

    def _chunk(self, sequence: Sequence, step: _Step) -> bool:
        """Prefill as much of a sequence as the budget allows; False: no blocks for it."""
        holding = sequence.holding
        assert holding is not None
        position = holding.tokens
        tokens = min(step.budget, sequence.known - position)
        if not self.cache.grow(holding, position + tokens):
            return False
        step.budget -= tokens
        step.computed += tokens
        step.end += self._time.prefill_fs(position, tokens)
        if holding.tokens == sequence.known:
            step.done.append(sequence)
            self._prefilling = None
        else:
            self._prefilling = sequence
        self._blocked = False  # the head may share what has just been computed
        return True

    def _complete(self, step: _Step, events: list[Event]) -> None:
        self._step = None
        self._clock = step.end
        self._count_decodes(1)
        self._totals.computed_tokens_total += step.computed
        self._retire(events)
        at_s = self._time.at_s(self._clock)
        for sequence in step.done:
            request = sequence.request
            sequence.generated += 1
            self._totals.generated_tokens_total += 1
            if request.first_token_s is None:
                request.first_token_s = at_s
                self._totals.prompt_tokens_total += sequence.prompt_tokens
                self._totals.cached_tokens_total += request.cached_tokens or 0
                self._totals.cached_host_tokens_total += request.restored_tokens
                if not sequence.cancelled:
                    events.append(Event("first_token", at_s, request))
            left = request.output.tokens - sequence.generated
            if left:
                self._decodes.join(sequence, left)
            else:
                self._finish(sequence, events)

    # -- steps that only decode

    def _after(self, steps: int) -> int:
        """The clock after `steps` more steps of the decodes alone."""
        decodes = self._decodes
        return self._clock + self._time.decode_fs(decodes.count, decodes.context, steps)

    def _steps_by(self, at_s: float) -> int:
        """How many decode steps have ended at `at_s`."""
        decodes = self._decodes
        return self._time.decode_steps_by(at_s, self._clock, decodes.count, decodes.context)

    def _stretch(self, to_s: float) -> int:
        """How many decode steps go by, up to `to_s`, before anything else has to be decided."""
        steps = min(self._max_jump, self._decodes.most_steps(self.cache.free_blocks))
        stops = [self._aborts[0][0]] if self._aborts else []
        if self._arrivals and not self._waiting:
            stops.append(self._arrivals[0][0])
        for stop_s in stops:
            if self._time.at_s(self._after(steps)) > stop_s:
                fewer = self._steps_by(stop_s)
                if self._time.at_s(self._after(fewer)) < stop_s:
                    fewer += 1
                steps = min(steps, fewer)
        if self._time.at_s(self._after(steps)) > to_s:
            steps = self._steps_by(to_s)
        return steps

    def _decode(self, steps: int, events: list[Event]) -> None:
        self.cache.take(self._decodes.blocks_for(steps))
        self._clock = self._after(steps)
        self._count_decodes(steps)
        self._retire(events)

    def _count_decodes(self, steps: int) -> None:
        self._totals.generated_tokens_total += self._decodes.count * steps
        self._decodes.advance(steps)

    def _retire(self, events: list[Event]) -> None:
        """Finish the decodes whose last token has just been generated."""
        for sequence in self._decodes.ended():
            self._finish(sequence, events)

    # -- leaving the batch

    def _finish(self, sequence: Sequence, events: list[Event]) -> None:
        self._vacate(sequence)
        if sequence.cancelled:
            return
        request = sequence.request
        del self._sequences[request.id]
        assert request.scheduled_s is not None
        assert request.first_token_s is not None
        request.finish_s = self._time.at_s(self._clock)
        self._totals.finished_total += 1
        self._totals.queue_s_total += request.scheduled_s - request.at_s
        self._totals.prefill_s_total += request.first_token_s - request.scheduled_s
        self._totals.decode_s_total += request.finish_s - request.first_token_s
        events.append(Event("finished", request.finish_s, request))

    def _preempt(self, events: list[Event]) -> None:
        """Send the latest admitted sequence back to the head of the queue."""
        sequence = next(reversed(self._running))
        self._vacate(sequence)
        if sequence.cancelled:
            return
        sequence.known = sequence.prompt_tokens + sequence.generated
        self._waiting.appendleft(sequence)
        self._totals.preemptions_total += 1
        events.append(Event("preempted", self._time.at_s(self._clock), sequence.request))

    def _vacate(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch; what it computed stays cached until the room is
        needed.
        """
        del self._running[sequence]
        self._blocked = False
        holding = sequence.holding
        assert holding is not None
        tokens = holding.tokens
        if sequence.joined_tick is not None:
            tokens += self._decodes.leave(sequence)
        elif self._prefilling is sequence:
            self._prefilling = None
        self.cache.release(holding, tokens)
        sequence.holding = None


class _Step:
    """A step in flight that does more than decode."""

    __slots__ = ("budget", "computed", "done", "end")

    def __init__(self, *, budget: int, end: int) -> None:
        self.budget = budget  # tokens it could still take
        self.end = end  # clock
        self.computed = 0  # tokens prefilled in it
        self.done: list[Sequence] = []  # prefilled to the end, so they get a token from it
