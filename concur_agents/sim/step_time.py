"""How long the steps of a simulated engine take, and when they end.

    prefill of n tokens from position p:  n x per token  +  n (p + n / 2) x per token squared
    n steps of d decodes over c tokens:   n x (per step + d x per sequence + c x per KV token)
                                          + d n (n - 1) / 2 x per KV token
    n tokens back from a host tier:       n / its rate

Time is counted in whole femtoseconds (`fs`), because n steps taken at once and one by one must
agree to the last bit; an instant (`clock`) counts them since the start of the engine.
"""

from __future__ import annotations

import math

from concur_agents.sim.profile import Profile

FS_PER_S = 10**15


class StepTime:
    """The time of one engine's steps; see the top of this file."""

    __slots__ = ("_kv_token", "_restored", "_sequence", "_start_s", "_step", "_token", "_token2")

    def __init__(self, profile: Profile, start_s: float) -> None:
        self._start_s = start_s
        self._step, self._token, self._token2, self._sequence, self._kv_token = (
            round(cost_s * FS_PER_S)
            for cost_s in (
                profile.step_overhead_s,
                profile.prefill_s_per_token,
                profile.prefill_s_per_token2,
                profile.decode_s_per_seq,
                profile.decode_s_per_kv_token,
            )
        )
        rate = profile.restore_tokens_per_s
        self._restored = round(FS_PER_S / rate) if rate else 0

    def prefill_fs(self, position: int, tokens: int) -> int:
        """What the prefill of `tokens` tokens after the first `position` takes [fs]."""
        # A token at position p attends to p tokens: n tokens from p on to n * (p + n / 2).
        return tokens * self._token + tokens * (2 * position + tokens) * self._token2 // 2

    def restore_fs(self, tokens: int) -> int:
        """What `tokens` tokens take from the host tier into the pool [fs]."""
        return tokens * self._restored

    def decode_fs(self, sequences: int, context: int, steps: int) -> int:
        """What `steps` steps take for the decodes alone, which hold `context` tokens now [fs]."""
        first = self._step + sequences * self._sequence + context * self._kv_token
        return steps * first + sequences * self._kv_token * (steps * (steps - 1) // 2)

    def decode_steps_by(self, at_s: float, clock: int, sequences: int, context: int) -> int:
        """How many decode steps from `clock` on have ended at `at_s`.

        It is the largest n with `decode_fs(n)`, which is a n + b n (n - 1) / 2, within the time.
        """
        time = max(0, int((at_s - self._start_s) * FS_PER_S) - clock)
        first, growth = self.decode_fs(sequences, context, 1), sequences * self._kv_token
        if growth:
            half = 2 * first - growth
            steps = (math.isqrt(half * half + 8 * growth * time) - half) // (2 * growth)
        else:
            steps = time // first
        # `at_s` is a float and may be off by a little; what counts is how floats compare.
        while self.at_s(clock + self.decode_fs(sequences, context, steps + 1)) <= at_s:
            steps += 1
        while steps and self.at_s(clock + self.decode_fs(sequences, context, steps)) > at_s:
            steps -= 1
        return steps

    def at_s(self, clock: int) -> float:
        """The instant in seconds."""
        return self._start_s + clock / FS_PER_S

    def clock_at(self, at_s: float) -> int:
        """The earliest clock, as far as floats can tell, that is not before `at_s`."""
        clock = math.ceil((at_s - self._start_s) * FS_PER_S)
        nudge = 1
        while self.at_s(clock) < at_s:
            clock += nudge
            nudge *= 2
        return clock
