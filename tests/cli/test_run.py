"""`concur run`: programs that know nothing of us, whole, against a server that counts."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import textwrap
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.cli.footer import Footer
from concur_agents.cli.run import _Watchers
from concur_agents.recording import RecordedCall, Recording, replay


class Server:
    """An OpenAI-compatible server that counts the calls in flight and names the callers."""

    def __init__(self):
        self.most = self.now = self.calls = 0
        self.fail = 0  # so many of the next calls
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    server.now += 1
                    server.calls += 1
                    server.most = max(server.most, server.now)
                    fails, server.fail = server.fail > 0, max(0, server.fail - 1)
                time.sleep(0.05)
                with lock:
                    server.now -= 1
                body = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": "hi"},
                        }
                    ],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
                }
                text = json.dumps(body).encode()
                self.send_response(500 if fails else 200)
                self.send_header("retry-after-ms", "1")
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def run(tmp_path, program, *words, url="", limit="2", environ=None):
    """Runs a program under `concur run` as from a shell; returns the finished process."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONCUR_")}
    code = "from concur_agents.cli.app import main; main()"
    bound = ["--limit", limit] if limit else []
    command = [sys.executable, "-c", code, "run", *bound, *words, "--", sys.executable, str(script)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=clean | {"MODEL_URL": url} | (environ or {}),
    )


ASK = """
import os, openai
options = {"base_url": os.environ["MODEL_URL"], "api_key": "-"}
say = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
"""

TASKS = (
    ASK
    + """
import asyncio

async def main():
    client = openai.AsyncOpenAI(**options)
    await client.chat.completions.create(**say)         # the conductor calls, too
    async def agent():
        for _ in range(3):
            await client.chat.completions.create(**say)
    await asyncio.gather(*(agent() for _ in range(6)))
    await client.chat.completions.create(**say)

asyncio.run(main())
print("done")
"""
)


def test_what_the_client_tries_again_is_the_same_step(tmp_path, server):
    server.fail = 2
    path = tmp_path / "run.jsonl"
    program = ASK + "print(openai.OpenAI(**options).chat.completions.create(**say).usage)"
    ran = run(tmp_path, program, "--record", str(path), url=server.url)
    assert ran.returncode == 0, ran.stderr
    assert server.calls == 3
    names = [line.name for line in Recording(path) if isinstance(line, RecordedCall)]
    assert (names.count("begin_step"), names.count("end_step")) == (1, 1)


def test_tasks_of_an_unchanged_program_are_agents(server, tmp_path):
    record = tmp_path / "run.jsonl"
    ran = run(tmp_path, TASKS, "--record", str(record), "--every", "0", url=server.url)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    assert server.calls == 20
    assert server.most == 2, "never more than the limit allows"
    assert "concur: 7 agents, 20 steps" in ran.stderr
    assert f"concur report {record}" in ran.stderr
    recording = Recording(record)
    assert list(replay(recording)) == []
    arrived = [
        line.agent for line in recording if isinstance(line, RecordedCall) and line.name == "arrive"
    ]
    assert len(arrived) == len(set(arrived)) == 7


def test_a_main_thread_that_waits_for_its_workers_does_not_keep_them_from_running(server, tmp_path):
    """Under a limit of one this would be a dead-lock, of a program that ran well without us."""
    program = (
        ASK
        + """
from concurrent.futures import ThreadPoolExecutor

client = openai.OpenAI(**options)
ask = lambda *_: client.chat.completions.create(**say)
ask()
with ThreadPoolExecutor(4) as pool:
    for _ in range(2):
        list(pool.map(ask, range(8)))
ask()
"""
    )
    ran = run(tmp_path, program, "--every", "0", url=server.url, limit="1")
    assert ran.returncode == 0, ran.stderr
    assert server.calls == 18
    assert server.most == 1


def test_each_piece_of_work_of_a_thread_pool_is_an_agent(server, tmp_path):
    program = (
        ASK
        + """
from concurrent.futures import ThreadPoolExecutor

client = openai.OpenAI(**options)

def solve(issue):
    for _ in range(2):
        client.chat.completions.create(**say)

with ThreadPoolExecutor(8) as pool:
    list(pool.map(solve, range(10)))
"""
    )
    ran = run(tmp_path, program, "--every", "0", url=server.url)
    assert ran.returncode == 0, ran.stderr
    assert (server.calls, server.most) == (20, 2)
    assert "concur: 10 agents, 20 steps" in ran.stderr


@pytest.mark.slow
def test_runs_of_a_graph_are_agents(server, tmp_path):
    pytest.importorskip("langgraph")
    pytest.importorskip("langchain_openai")
    program = (
        ASK
        + """
import asyncio
from langchain_openai import ChatOpenAI
from langgraph.graph import MessagesState, StateGraph

model = ChatOpenAI(model="m", **options)

async def call(state):
    return {"messages": [await model.ainvoke(state["messages"])]}

graph = StateGraph(MessagesState)
graph.add_node("a", call)
graph.add_node("b", call)
graph.add_edge("__start__", "a")
graph.add_edge("a", "b")
graph = graph.compile()

async def main():
    await asyncio.gather(*(
        graph.ainvoke({"messages": ["hi"]}, {"configurable": {"thread_id": f"issue-{n}"}})
        for n in range(5)
    ))

asyncio.run(main())
"""
    )
    record = tmp_path / "run.jsonl"
    ran = run(tmp_path, program, "--record", str(record), "--every", "0", url=server.url)
    assert ran.returncode == 0, ran.stderr
    assert (server.calls, server.most) == (10, 2)
    arrived = {
        line.agent
        for line in Recording(record)
        if isinstance(line, RecordedCall) and line.name == "arrive"
    }
    assert arrived == {f"issue-{n}" for n in range(5)}


def test_a_synchronous_client_on_an_event_loop_passes_instead_of_stopping_it(server, tmp_path):
    """It ran before, so it has to run under us; it is said that it is not governed."""
    program = (
        ASK
        + """
import asyncio
client = openai.OpenAI(**options)
other = openai.AsyncOpenAI(**options)

async def holds():
    await other.chat.completions.create(**say)
    await asyncio.sleep(0.2)

async def agent():
    await asyncio.sleep(0.1)
    client.chat.completions.create(**say)

async def main():
    await asyncio.gather(holds(), agent())

asyncio.run(main())
"""
    )
    ran = run(tmp_path, program, "--every", "0", url=server.url, limit="1")
    assert ran.returncode == 0, ran.stderr
    assert server.calls == 2
    assert "a synchronous client is used on an event loop's thread" in ran.stderr


def test_a_process_whose_governor_cannot_be_made_says_why_and_nothing_else(tmp_path, server):
    """It also warned that a client's `_client` was replaced, which nothing had done."""
    program = ASK + "openai.OpenAI(**options).chat.completions.create(**say)"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)  # so that a socket in there is refused
    ran = run(tmp_path, program, "--socket", str(tmp_path / "open" / "gov.sock"), url=server.url)
    assert (ran.returncode, server.calls) == (0, 1), ran.stderr
    assert "this process runs ungoverned: " in ran.stderr
    assert "replaced" not in ran.stderr


def test_a_program_that_governs_itself_is_not_counted_as_no_agents_in_no_time(tmp_path, server):
    program = (
        ASK
        + """
import concur_agents as ca
from concur_agents.openai import OpenAI
gov = ca.Governor(limit=1)
with gov.agent("own"):
    OpenAI(governor=gov, **options).chat.completions.create(**say)
"""
    )
    ran = run(tmp_path, program, url=server.url)
    assert (ran.returncode, server.calls) == (0, 1), ran.stderr
    assert "or governs them by itself" in ran.stderr
    assert "0 agents" not in ran.stderr


def test_a_program_keeps_its_exit_code_its_streams_and_its_own_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.MINE = 'kept'\n")
    program = "import sys; print(MINE); print('oops', file=sys.stderr); sys.exit(7)"
    ran = run(tmp_path, program, environ={"PYTHONPATH": str(tmp_path)})
    assert (ran.returncode, ran.stdout) == (7, "kept\n")
    assert ran.stderr.startswith("oops\n")
    assert "no call was governed" in ran.stderr


@pytest.mark.slow
def test_a_second_process_gets_a_recording_of_its_own(server, tmp_path):
    program = (
        ASK
        + """
import subprocess, sys
client = openai.OpenAI(**options)
client.chat.completions.create(**say)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""
    )
    record = tmp_path / "run.jsonl"
    ran = run(tmp_path, program, "--record", str(record), "--every", "0", url=server.url)
    assert ran.returncode == 0, ran.stderr
    assert server.calls == 2
    assert len(list(tmp_path.glob("run*.jsonl"))) == 2
    assert ran.stderr.count("1 agents, 1 steps") == 2


def on_terminal(command, environ, enough, *, rows=30, columns=100):
    """Runs a command on a terminal of its own; returns its exit code and all that it showed.

    The file ENOUGH comes into being as soon as `enough` says so of what was shown.
    """
    stop = Path(environ["ENOUGH"])
    main_end, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (rows, columns))
    # Of a session of its own: the first terminal that its leader opens becomes its terminal.
    in_front = ["sh", "-c", 'exec <"$0" >"$0" 2>&1; exec "$@"', os.ttyname(its_end)]
    process = subprocess.Popen(
        [*in_front, *command], env=environ | {"TERM": "xterm"}, start_new_session=True
    )
    shown = b""
    while process.poll() is None or select.select([main_end], [], [], 0)[0]:
        if select.select([main_end], [], [], 0.05)[0]:
            shown += os.read(main_end, 65536)
            if enough(shown.decode(errors="replace")):
                stop.touch()
    os.close(its_end)
    os.close(main_end)
    return process.returncode, shown.decode()


TALKS = (
    ASK
    + """
import sys, time
client = openai.OpenAI(**options)
print("a terminal:", sys.stdout.isatty(), sys.stderr.isatty())
begun = time.monotonic()
while not os.path.exists(os.environ["ENOUGH"]) and time.monotonic() < begun + 60:
    client.chat.completions.create(**say)
print("done")
sys.exit(3)
"""
)


@pytest.mark.parametrize(
    ("words", "is_live"), [([], True), (["--no-live", "--every", "0.4"], False)]
)
def test_on_a_terminal_it_shows_where_things_stand_below_the_program(
    server, tmp_path, words, is_live
):
    """The program keeps the terminal; the rows below it go at the end, and the summary stays."""
    script = tmp_path / "program.py"
    script.write_text(TALKS)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONCUR_")}
    clean.pop("COLUMNS", None)
    code = "from concur_agents.cli.app import main; main()"
    command = [sys.executable, "-c", code, "run", "--limit", "2", *words, "--"]
    left, shown = on_terminal(
        [*command, sys.executable, str(script)],
        clean | {"MODEL_URL": server.url, "ENOUGH": str(tmp_path / "enough")},
        enough=lambda shown: "1 reasoning" in shown or "1 acting" in shown,
    )
    assert left == 3
    assert "a terminal: True True\r\n" in shown
    assert "concur: 1 agents" in shown
    frame = "\x1b[1;20r"  # what scrolls ends above ten rows
    assert (frame in shown) == is_live
    assert ("hit deficit" in shown) == is_live
    assert ("1 reasoning" in shown) or ("1 acting" in shown)
    if is_live:
        assert shown.rindex("\x1b[r") > shown.rindex("hit deficit")
        assert shown.rindex("\x1b[r") < shown.index("concur: 1 agents")
    else:
        assert "\x1b[" not in shown


def test_of_several_processes_the_largest_is_shown_and_the_others_are_named(tmp_path):
    watchers = _Watchers(tmp_path / "{pid}.jsonl")
    console = Console(width=100, file=io.StringIO())
    assert watchers.status() == "no call to a model yet"
    console.print(watchers.picture(100))
    with ExitStack() as alive:
        for agents in (1, 2):
            path = tmp_path / f"{agents}.jsonl"
            governor = alive.enter_context(Governor(limit=2, record=path))
            for number in range(agents):
                alive.enter_context(governor.agent(f"agent-{number}", detached=True))
            governor._recording.recorder.flush()
        watchers.read()
        console.print(watchers.picture(100))
        assert watchers.status() == "1 acting | 2 acting"
    watchers.read()
    console.print(watchers.picture(100))
    shown = console.file.getvalue()
    assert shown.count("no call to a model yet") == 1
    assert "another process: 1 acting" in shown
    assert "2 acting" in shown.partition("another process")[0]
    assert len(watchers.timelines()) == 2
    assert "closed" in shown


def test_the_rows_below_go_when_the_terminal_becomes_too_small(tmp_path):
    main_end, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (30, 80))
    with os.fdopen(its_end, "w") as terminal:
        footer = Footer(terminal, 10)
        footer.draw("a word")
        termios.tcsetwinsize(its_end, (25, 60))
        footer.draw("a word")
        termios.tcsetwinsize(its_end, (12, 60))
        footer.draw("another")
        footer.close()
        shown = ""
        while select.select([main_end], [], [], 0.2)[0]:
            shown += os.read(main_end, 65536).decode()
    os.close(main_end)
    assert shown.count("a word") == 2
    assert "another" not in shown
    assert [piece in shown for piece in ("\x1b[1;20r", "\x1b[1;15r")] == [True, True]
    assert shown.count("\x1b[r") == 2
    assert not Footer.fits(io.StringIO(), 10)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "--engine http://localhost:8000), or a fixed cap (Governor(limit=8), --limit 8)"),
        (["--law", "working_st"], "did you mean 'working_set'?"),
        (["--limit", "2", "--max-wait-s", "never"], "--max-wait-s is 'never'"),
        (["--limit", "2", "--law", "cache_aimd"], "leave one of them out"),
        (["--limit", "2", "--record", "nowhere/run.jsonl"], "its folder does not exist"),
    ],
)
def test_wrong_options_are_said_before_anything_starts(tmp_path, capsys, words, answer):
    ran = tmp_path / "ran"
    with pytest.raises(SystemExit) as left:
        main(["run", *words, "--", sys.executable, "-c", f"open({str(ran)!r}, 'w')"])
    assert left.value.code == 2
    assert answer in capsys.readouterr().err
    assert not ran.exists()


def test_a_program_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "--limit", "1", "--", str(tmp_path / "nothing")])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.count("\n") == 1
    assert "cannot start" in said
