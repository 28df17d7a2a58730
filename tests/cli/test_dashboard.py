"""The dashboard: its bar, its charts, its size."""

import io

from rich.console import Console

from concur_agents.cli.dashboard import dashboard, pool_bar, thinned
from concur_agents.cli.watch_recording import Screen
from concur_agents.observe.frame import Frame, Point


def screen_of(recording):
    screen = Screen(recording)
    for line in recording:
        screen.take(line)
    return screen


def test_the_screen_shows_all_of_it(half_way):
    screen = screen_of(half_way)
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(dashboard(screen.frame(), screen.trail(), "run.jsonl", width=110, height=40))
    text = console.export_text()
    for piece in ("run.jsonl", "fixed", "of 10,000 tokens", "1 reasoning", "1 acting", "1 queued"):
        assert piece in text
    for piece in (
        "2 of 2 agents active",
        "waits",
        "30.0 s",
        "2.0 agents",
        "0 let in as overdue",
    ):
        assert piece in text


def test_the_bar_is_the_pool():
    """Its parts add up: what reasons, what acts, what has faded, what is free."""
    numbers = dict.fromkeys(("reasoning", "acting", "paused", "queued", "suspended"), 1)
    frame = Frame(
        **numbers, at_s=0, law="x", reason="", pressure_tokens=500, capacity_tokens=1000,
        reasoning_tokens=300, faded_tokens=100, limit_tokens=None, limit_agents=None,
        hit_rate=None, hit_deficit=None, pauses_total=0, overdue_total=0, longest_wait_s=0,
        blind=False, closed=False,
    )  # fmt: skip
    bar = str(pool_bar(frame, width=10)).splitlines()[0]
    assert bar == "███▓▓▒░░░░ 50% of 1,000 tokens"


def test_a_screen_is_never_wider_or_higher_than_the_terminal(batch):
    screen = Screen(batch)
    for number, line in enumerate(batch):
        screen.take(line)
        if number == 300:
            break
    frame = screen.frame()
    assert frame.waiting
    for width, height in ((60, 24), (80, 24), (120, 40), (200, 60)):
        console = Console(width=width, file=io.StringIO())
        console.print(dashboard(frame, screen.trail(), "run.jsonl", width=width, height=height))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        if width >= 80:
            assert len(lines) <= height


def test_a_long_trail_is_thinned_and_keeps_its_end():
    trail = [Point(float(n), None, None, 0.0, 0, None) for n in range(100)]
    shown = thinned(trail, 30)
    assert len(shown) <= 30
    assert shown[-1].at_s == 99
    assert thinned(trail[:5], 30) == trail[:5]
