"""What was finished is never done twice and never lost, whatever happened to the file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from concur_agents import AgentPool, ConfigError, JournalError
from concur_agents.batch.journal import Journal
from concur_agents.runtime.session import AgentStats
from concur_agents.testing import run, virtual_governor

HEADER = '{"concur_journal": 1}\n'


def batch(path, items, *, fail=(), **options):
    """Runs a batch; returns its outcomes by key and the keys that really ran."""
    ran = []

    async def solve(item):
        ran.append(str(item))
        await asyncio.sleep(1)
        if str(item) in fail:
            raise ValueError(item)
        return {"answer": item}

    async def main():
        async with virtual_governor(limit=2) as gov, AgentPool(gov, journal=path, **options) as p:
            return {o.key: o async for o in p.as_completed(solve, items)}

    return run(main()), ran


def test_finished_agents_are_not_run_again_and_failed_ones_are(tmp_path):
    path = tmp_path / "runs.jsonl"
    first, ran = batch(path, ["a", "b", "c"], fail=("b",))
    assert ran == ["a", "b", "c"]
    assert first["b"].status == "error"
    second, ran = batch(path, ["a", "b", "c", "d"])
    assert ran == ["b", "d"]
    assert {k: o.status for k, o in second.items()} == {
        "a": "cached",
        "b": "ok",
        "c": "cached",
        "d": "ok",
    }
    assert second["a"].value == {"answer": "a"}
    third, ran = batch(path, ["a", "b", "c", "d"])
    assert ran == []
    assert {o.status for o in third.values()} == {"cached"}


def test_the_lines_say_what_an_agent_took(tmp_path):
    path = tmp_path / "runs.jsonl"
    batch(path, ["a"], fail=())
    header, line = (json.loads(text) for text in path.read_text("utf-8").splitlines())
    assert header == {"concur_journal": 1}
    assert line["key"] == "a"
    assert line["status"] == "ok"
    assert line["running_s"] == 1.0
    assert {"queued_s", "paused_s", "pauses", "steps", "prompt_tokens", "at_s"} <= set(line)


def test_a_torn_last_line_is_cut_off_and_its_agent_runs_again(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    batch(path, ["a", "b"])
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) - 1, 9):
        path.write_bytes(whole[: -1 - cut])
        _, ran = batch(path, ["a", "b"])
        assert ran == ["b"]
        lines = path.read_text("utf-8").splitlines()
        assert [json.loads(line).get("key") for line in lines] == [None, "a", "b"]
    assert "torn by a crash" in caplog.text


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path):
    path = tmp_path / "runs.jsonl"
    batch(path, ["a"])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    _, ran = batch(path, ["a", "b"])
    assert ran == ["b"]
    assert len(path.read_text("utf-8").splitlines()) == 3


@pytest.mark.parametrize("content", ["", HEADER[:9], HEADER, HEADER[:-1]])
def test_an_empty_or_just_begun_file_is_a_new_journal(tmp_path, content):
    path = tmp_path / "runs.jsonl"
    path.write_text(content)
    with Journal(path) as journal:
        assert len(journal) == 0
        journal.write("a", "ok", value=1)
    assert path.read_text("utf-8").startswith(HEADER)
    with Journal(path) as journal:
        assert "a" in journal
        assert journal.value("a") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name,score\na,1\n", "not a journal of an AgentPool .*'name,score'.* another path"),
        ('{"key": "a"}\n', "not a journal"),
        ("no json and no end", "not a journal"),
        ("[1, 2]\n", "not a journal"),
        (HEADER + "garbage\n" + '{"key": "a", "status": "ok"}\n', "line 2 of the journal .*delete"),
        (HEADER + '{"status": "ok"}\n', "line 2 of the journal"),
        (HEADER + '{"key": 3, "status": "ok"}\n', "line 2 of the journal"),
        ('{"concur_journal": 99}\n', "not a journal"),
    ],
)
def test_a_file_that_is_not_ours_or_is_broken_is_refused_and_not_changed(tmp_path, content, says):
    path = tmp_path / "results.csv"
    path.write_text(content)
    with pytest.raises(JournalError, match=says):
        Journal(path)
    assert path.read_text("utf-8") == content


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(JournalError, match="does its folder exist"):
        Journal(tmp_path / "no" / "runs.jsonl")


def test_two_pools_cannot_write_one_journal(tmp_path):
    with (
        Journal(tmp_path / "runs.jsonl"),
        pytest.raises(JournalError, match="another process or pool is writing"),
    ):
        Journal(tmp_path / "runs.jsonl")


def test_a_result_that_json_cannot_hold_is_delivered_and_said_once(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"

    async def main():
        async def solve(item):
            return {1, 2}

        async with virtual_governor(limit=2) as gov, AgentPool(gov, journal=path) as pool:
            return await pool.map(solve, ["a", "b"])

    assert run(main()) == [{1, 2}, {1, 2}]
    assert caplog.text.count("give AgentPool a `dump`") == 1
    _, ran = batch(path, ["a"])
    assert ran == ["a"]


def test_dump_and_load_carry_any_type(tmp_path):
    path = tmp_path / "runs.jsonl"

    def once():
        async def main():
            async def solve(item):
                return {1, 2}

            options = {"dump": sorted, "load": set}
            async with (
                virtual_governor(limit=2) as gov,
                AgentPool(gov, journal=path, **options) as pool,
            ):
                return [o async for o in pool.as_completed(solve, ["a"])]

        return run(main())

    assert [(o.status, o.value) for o in once()] == [("ok", {1, 2})]
    assert [(o.status, o.value) for o in once()] == [("cached", {1, 2})]


def test_items_without_a_name_need_a_key_when_there_is_a_journal(tmp_path):
    path = tmp_path / "runs.jsonl"
    with pytest.raises(ConfigError, match=r"needs a key for \{'x': 1\}.*give AgentPool a key"):
        batch(path, [{"x": 1}])
    outcomes, _ = batch(path, [{"x": 1}], key=lambda item: f"x{item['x']}")
    assert outcomes["x1"].status == "ok"
    outcomes, _ = batch(tmp_path / "b.jsonl", [{"instance_id": "django-1"}])
    assert list(outcomes) == ["django-1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to be had")
def test_a_disk_that_is_full_loses_no_outcome_and_comes_out_at_the_end(tmp_path):
    seen = []

    async def main():
        async def solve(item):
            await asyncio.sleep(1)
            return item

        async with (
            virtual_governor(limit=2) as gov,
            AgentPool(gov, journal=tmp_path / "runs.jsonl") as pool,
        ):
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, pool._runs.journal._file.fileno())
            os.close(full)
            seen.extend([o.value async for o in pool.as_completed(solve, ["a", "b", "c"])])

    with pytest.raises(JournalError, match="is the disk full"):
        run(main())
    assert seen == ["a", "b", "c"]


def test_killed_in_the_middle_no_result_that_was_delivered_is_lost(tmp_path):
    path = tmp_path / "runs.jsonl"
    script = """
        import asyncio, sys
        import concur_agents as ca
        async def solve(i):
            await asyncio.sleep(0.002)
            return i
        async def main():
            async with ca.AgentPool(ca.Governor(limit=8), journal=sys.argv[1]) as pool:
                async for outcome in pool.as_completed(solve, range(10**6)):
                    print(outcome.key, flush=True)
        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    delivered = [process.stdout.readline().strip() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    delivered += process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    with Journal(path) as journal:
        assert len(delivered) >= 50
        assert all(key in journal for key in delivered)


def test_stats_are_written_beside_the_value(tmp_path):
    stats = AgentStats(
        queued_s=1.0,
        paused_s=2.0,
        running_s=3.0,
        pauses=1,
        steps=4,
        prompt_tokens=5,
        completion_tokens=6,
        cached_tokens=None,
    )
    with Journal(tmp_path / "j") as journal:
        journal.write("a", "error", error=ValueError("x"), stats=stats)
    line = json.loads((tmp_path / "j").read_text("utf-8").splitlines()[1])
    assert (line["error"], line["paused_s"], line["cached_tokens"]) == (
        "ValueError('x')",
        2.0,
        None,
    )


# Files and secrets (fault U)


def test_a_journal_is_its_owners_alone_also_an_old_one_that_goes_on(tmp_path):
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    old.write_text(HEADER + '{"key": "a", "status": "ok", "value": 1}\n')
    old.chmod(0o644)
    for path in (new, old):
        with Journal(path) as journal:
            assert path.stat().st_mode & 0o777 == 0o600
            assert ("a" in journal) == (path == old)


def test_a_file_that_is_no_journal_keeps_its_mode(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    path.chmod(0o644)
    with pytest.raises(JournalError):
        Journal(path)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_journal_whose_mode_cannot_be_changed_is_used_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    path = tmp_path / "old.jsonl"
    path.write_text(HEADER)
    path.chmod(0o644)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with Journal(path) as journal:
        journal.write("a", "ok", value=1)
    assert "other users may be able to read" in caplog.text


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(JournalError, match="is not a file"):
            Journal(path)


class UnspeakableError(Exception):
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (ValueError("401: Bearer abcdef123 is wrong"), "ValueError('401: *** is wrong')"),
        (ValueError("Incorrect API key provided: sk-proj-1234abcd"), None),
        (ValueError({"x-api-key": "topsecret-1234"}), None),
        (ValueError('{"api_key": "topsecret-1234"}'), None),
        (ValueError("https://me:topsecret-1234@host/v1?key=topsecret-1234"), None),
        (ValueError("hf_topsecret ghp_topsecret AKIAtopsecret"), None),
        (UnspeakableError(), "UnspeakableError"),
    ],
)
def test_errors_are_kept_without_keys(tmp_path, error, kept):
    with Journal(tmp_path / "j") as journal:
        journal.write("a", "error", error=error)
    text = json.loads((tmp_path / "j").read_text("utf-8").splitlines()[1])["error"]
    assert kept is None or text == kept
    assert "topsecret" not in text
    assert "1234abcd" not in text


def test_errors_are_kept_up_to_a_bound(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.write("a", "error", error=ValueError("x " * 10**6))
    assert (tmp_path / "j").stat().st_size < 3_000


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_result_of_any_depth_is_delivered_and_the_journal_can_be_read_again(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"

    async def main():
        async def solve(levels):
            return nested(levels)

        async with virtual_governor(limit=2) as gov, AgentPool(gov, journal=path) as pool:
            return [o async for o in pool.as_completed(solve, [100, 980, 5_000, 100_000])]

    # How deep json goes depends on Python: from 3.12 on some thousand levels, before it about 900.
    kept = 1 if sys.version_info < (3, 12) else None
    for is_first in (True, False):
        outcomes = run(main())
        assert len(outcomes) == 4
        cached = [o.key for o in outcomes if o.status == "cached"]
        assert sum(o.status == "ok" for o in outcomes) == 4 - len(cached)
        assert len(cached) == (0 if is_first else kept or len(cached))
        assert is_first or ("100" in cached and "100000" not in cached)
        for outcome in outcomes:
            assert not outcome.error
    assert caplog.text.count("nested too deep") == 2, "once for each run"


def test_a_line_nested_so_deep_that_an_earlier_version_wrote_it_is_read(tmp_path):
    path = tmp_path / "runs.jsonl"
    deep = "[" * 980 + "]" * 980
    path.write_text(f'{HEADER}{{"key": "a", "status": "ok", "value": {deep}}}\n')
    with Journal(path) as journal:
        assert "a" in journal


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_child_that_outlives_a_killed_parent_does_not_hold_the_journal(tmp_path):
    path = tmp_path / "runs.jsonl"
    script = """
        import os, sys, time
        from concur_agents.batch.journal import Journal
        from concur_agents.errors import JournalError
        journal = Journal(sys.argv[1])
        journal.write("a", "ok", value=1)
        if os.fork() == 0:
            try:
                journal.write("b", "ok", value=2)
            except JournalError as error:
                print(error, flush=True)
            journal.close()
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert "belongs to the process that this one was forked from" in process.stdout.readline()
        with pytest.raises(JournalError, match="is writing"):
            Journal(path)
        process.kill()
        process.wait()
        with Journal(path) as journal:
            assert len(journal) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
