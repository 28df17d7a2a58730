"""Every command on a damaged recording ends in one line; no text in it commands the terminal."""

import json
import random
import signal
from dataclasses import replace

import pytest

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.cli.console import Console
from concur_agents.cli.dashboard import dashboard, strip
from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.observe.frame import Waiting, frame_of
from concur_agents.recording import record

COMMANDS = (
    ["explain"],
    ["explain", "--agent", "acts"],
    ["explain", "--json"],
    ["report", "--output"],
    ["replay-law"],
    ["replay-law", "--law", "cache_aimd"],
    ["watch", "--count", "1", "--interval", "0.05"],
    ["watch", "--count", "1", "--json", "--speed", "1e9"],
)
JUNK = [None, True, -1, 1e300, 10**30, "x", "\x1b]0;gotcha\x07", "[/bold]", [], {}, [[]], {"a": 1},
        float("nan"), 0.5, "waits"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a recording in which everything has happened."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    law = make_law("working_set")
    regulator = Regulator(law, max_wait_s=50.0)
    recorded, recorder = record(regulator, path, shadow=make_law("cache_aimd"), max_wait_s=50.0)
    with recorder:
        for name in ("reasons", "acts", "waits"):
            recorded.arrive(name, 0.0, prompt_tokens=6000)
        recorded.tick(Reading(at_s=1.0, capacity_tokens=10_000), 1.0)
        recorded.arrive("inner", 1.0, parent="acts")
        for name in ("reasons", "acts", "inner"):
            recorded.begin_step(name, 1.0, prompt_tokens=6000)
            recorded.end_step(name, 5.0, Usage(6000, 10, 1000))
        for now in range(6, 12):
            recorded.begin_step("reasons", float(now))
            recorded.tick(
                Reading(at_s=float(now), capacity_tokens=10_000, kv_usage=0.5), float(now)
            )
            recorded.retry_step("reasons", float(now), overloaded=True)
            recorded.end_step("reasons", now + 0.5, Usage(7000, 10, 1000))
        recorded.suspend("acts", 13.0)
        recorded.resume("acts", 14.0)
        recorded.advance(30.0)
        recorded.leave("acts", 40.0)
    return path.read_bytes()


def torn(whole, draw):
    return whole[: draw.randrange(len(whole))]


def flipped(whole, draw):
    found = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def shuffled(whole, draw):
    lines = whole.splitlines(keepends=True)
    first, rest = lines[0], lines[1:]
    draw.shuffle(rest)
    return b"".join([first, *rest[: draw.randint(0, len(rest))]])


def swapped(whole, draw):
    """One value of a line, at any depth, is replaced by one of another type."""
    lines = whole.splitlines()
    number = draw.choice([0, draw.randrange(len(lines))])
    line = json.loads(lines[number])
    inside = line
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = draw.choice(keys)
        if not isinstance(inside[key], dict | list) or not inside[key] or draw.random() < 0.3:
            break
        inside = inside[key]
    if draw.random() < 0.2 and isinstance(inside, dict):
        del inside[key]
    else:
        inside[key] = draw.choice(JUNK)
    lines[number] = json.dumps(line).encode()
    return b"\n".join(lines) + b"\n"


def outcome(words, path, capsys, tmp_path):
    """What a command printed, and its exit code."""
    words = [*words, str(tmp_path / "page.html")] if words[-1] == "--output" else words
    with pytest.raises(SystemExit) as left:
        main([words[0], str(path), *words[1:]])
    return left.value.code, capsys.readouterr()


@pytest.mark.parametrize("damage", [torn, flipped, shuffled, swapped])
@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_recording_ends_a_command_in_one_line(damage, seed, whole, capsys, tmp_path):
    """442 of 2,262 commands ended in a traceback."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(damage(whole, random.Random(seed)))
    signal.alarm(60)
    try:
        for words in COMMANDS:
            code, said = outcome(words, path, capsys, tmp_path)
            assert code in (0, 1, 2, None)
            assert "\x1b" not in said.out + said.err
            if code == 2:
                assert said.err.startswith("concur: ")
                assert said.err.count("\n") == 1
    finally:
        signal.alarm(0)


def test_a_good_recording_is_read_to_its_end(whole, capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(whole)
    for words in COMMANDS:
        code, said = outcome(words, path, capsys, tmp_path)
        assert code in (0, None), said
        assert not said.err


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "[]\n", "null\n", "[" * 100_000, "\0" * 100])
def test_what_is_no_recording_ends_a_command_in_one_line(text, capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    for words in COMMANDS:
        code, said = outcome(words, path, capsys, tmp_path)
        assert code == 2
        assert said.err.count("\n") == 1


def test_ids_and_reasons_in_a_recording_command_no_terminal(whole, capsys, tmp_path):
    """Also in one that another program has written."""
    path = tmp_path / "run.jsonl"
    evil = "\x1b]0;gotcha\x07\x9b2J[/bold]"
    lines = [json.loads(line) for line in whole.splitlines()]
    lines[0]["law"] |= {"url": evil}
    lines[0] |= {"url": evil, "version": evil, "python": evil}
    for line in lines[1:]:
        if line.get("agent") == "waits":
            line |= {"agent": evil, "why": evil}
        line["let_in"] = [evil if who == "waits" else who for who in line.get("let_in", ())]
        line["reason"] = evil
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    for words in (*COMMANDS, ["explain", "--agent", evil]):
        code, said = outcome(words, path, capsys, tmp_path)
        assert code in (0, 1, None), said
        assert "\x1b" not in said.out + said.err
        assert "\x9b" not in said.out + said.err
    assert "\x1b" not in (tmp_path / "page.html").read_text("utf-8")


def test_a_living_governors_ids_command_no_terminal(tmp_path, capsys):

    evil = "\x1b]0;gotcha\x07"
    with Governor(limit=1) as governor, governor.agent(evil):
        frame = frame_of(governor)
    row = Waiting(agent=evil, state="paused", waited_s=1.0, why=evil)
    frame = replace(frame, waiting=[row], reason=evil, law=evil)
    console = Console(width=100, force_terminal=True, color_system=None)
    console.print(dashboard(frame, [], evil, width=100, height=40))
    console.print(strip(frame, evil, width=100))
    assert "\x1b]" not in capsys.readouterr().out
