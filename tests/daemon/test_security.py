"""Who may connect to a daemon, who may be one, and what nonsense does."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from concur_agents import ConfigError, Governor
from concur_agents.daemon import Daemon, listen
from concur_agents.daemon.locks import locked_urls, take_locks
from concur_agents.errors import WatchError
from concur_agents.runtime.daemon_address import daemon_address
from concur_agents.wire import MOST_BYTES


def test_tcp_needs_the_token(folder, serve, until, caplog, free_port):
    with pytest.raises(ConfigError, match="token"):
        serve("tcp://127.0.0.1:0", limit=4)
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    daemon = serve(where, limit=4, token="s3cret")
    with Governor(shared=where, token="s3cret") as governor, governor.agent("a"):
        assert governor.snapshot().reason == "shared"
    with Governor(shared=where, token="wrong") as governor:
        threading.Thread(target=lambda: governor.agent("b").open_sync(), daemon=True).start()
        until(lambda: any("token is not that" in line for line in caplog.messages))
    assert daemon._governor.snapshot().active == 0
    assert "s3cret" not in caplog.text
    assert "wrong" not in caplog.text


def test_a_client_without_the_token_is_told_what_to_set_and_logged_once(
    folder, serve, until, caplog, free_port
):
    """It tries again twice a second, and wrote a line each time."""
    where = f"tcp://127.0.0.1:{free_port()}"
    daemon = serve(where, limit=4, token="s3cret")
    refused = []
    say = daemon.say_refused
    daemon.say_refused = lambda *about: (refused.append(about), say(*about))
    with Governor(shared=where) as governor:
        threading.Thread(target=lambda: governor.agent("b").open_sync(), daemon=True).start()
        until(lambda: len(refused) >= 3)
    assert sum("a client at 127.0.0.1 was dropped" in line for line in caplog.messages) == 1
    lost = next(line for line in caplog.messages if "cannot reach the daemon" in line)
    assert "a token is needed and none was sent: set token= or CONCUR_TOKEN" in lost


def test_a_port_that_is_taken_is_said_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = daemon_address(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"Address already in use; free that port, or"):
            listen(where, "s3cret")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"n":1,"kind":"ops","ops":[]}\n',
        b'{"n":1,"kind":"hello","version":9,"session":"x","epoch":1,"seq":0,"agents":0}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (MOST_BYTES + 1),
    ],
    ids=["http", "no hello", "version", "deep", "long"],
)
def test_a_client_that_speaks_nonsense_is_dropped_with_one_line(
    folder, serve, until, caplog, nonsense
):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=1)
    with Governor(shared=where) as governor, governor.agent("a") as agent:
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.connect(f"{folder}/d/s")
            foreign.settimeout(10)
            with contextlib.suppress(OSError):
                foreign.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                while foreign.recv(4096):
                    pass
        assert sum("was dropped" in line for line in caplog.messages) == 1
        assert max(map(len, caplog.messages)) < 500
        with agent.step():
            assert daemon._governor.snapshot().active == 1


def test_the_socket_is_its_owners_alone(folder, serve):
    daemon_folder = folder / "d"
    serve(f"unix:{daemon_folder}/s", limit=1)
    assert stat.S_IMODE((daemon_folder / "s").stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon_folder.stat().st_mode) == 0o700
    daemon_folder.chmod(0o755)
    with pytest.raises(ConfigError, match="other users"):
        serve(f"unix:{daemon_folder}/t", limit=1)


def test_a_second_daemon_for_an_engine_is_refused_with_the_address_of_the_first(
    folder, serve_process
):
    """Whatever else it serves, and wherever it listens; the lock ends with its process."""
    one, two = "http://127.0.0.1:9", "http://127.0.0.1:19"
    first = serve_process(f"unix:{folder}/d/s", "--engine", one, "--engine", two)
    words = ["serve", "--listen", f"unix:{folder}/d/t", "--engine", two]

    def second():
        command = [sys.executable, "-c", "from concur_agents.cli.app import main; main()", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    ran = second()
    assert ran.returncode == 2
    assert f"decides about {two} already" in ran.stderr.replace("\n", " ")
    assert f"process {first.pid}" in ran.stderr
    assert not (folder / "d" / "t").exists()
    first.kill()
    first.wait(30)
    serve_process(*words[2:])


def test_the_engines_behind_a_router_have_one_daemon_too(folder):
    urls = locked_urls("http://router", ["http://gpu1", "http://gpu2"])
    assert urls == ["http://router", "http://gpu1", "http://gpu2"]
    assert locked_urls(["http://a", "http://b"], None) == ["http://a", "http://b"]
    assert locked_urls("http://router", {"one": "http://gpu1"}) == ["http://router", "http://gpu1"]
    assert locked_urls(None, None) == []
    taken = take_locks(urls, "here")
    with pytest.raises(ConfigError, match="decides about http://gpu2 already"):
        take_locks(["http://gpu2"], "there")
    for each in taken:
        each.close()


def test_a_socket_of_another_user_is_not_connected_to(folder, serve, monkeypatch):
    serve(f"unix:{folder}/d/s", limit=1)
    with daemon_address(f"unix:{folder}/d/s").connect():
        pass
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(WatchError, match="owned by another user"):
        daemon_address(f"unix:{folder}/d/s").connect()


def test_a_client_does_not_connect_where_others_may_put_a_socket(folder, serve, until, caplog):
    serve(f"unix:{folder}/d/s", limit=1)
    (folder / "d").chmod(0o777)
    with Governor(shared=f"unix:{folder}/d/s") as governor:
        threading.Thread(target=lambda: governor.agent("b").open_sync(), daemon=True).start()
        until(lambda: any("may write there" in line for line in caplog.messages))


def test_options_that_are_the_daemons_are_refused(folder):
    with pytest.raises(ConfigError, match="concur serve"):
        Governor(limit=4, shared=f"unix:{folder}/s")
    with pytest.raises(ConfigError, match="unix:PATH"):
        Governor(shared="http://head:7070")
    with pytest.raises(ConfigError, match="shared says"):
        Governor(limit=4, token="x")


def test_an_idle_daemon_says_once_that_it_ends(folder, caplog):
    """Its log had the line twice."""
    caplog.set_level(logging.INFO, "concur_agents")
    address = daemon_address(f"unix:{folder}/d/s")
    listener, _ = listen(address, None)
    with Governor(limit=1) as governor:
        daemon = Daemon(governor, settle_s=0.0, idle_s=0.1)
        asyncio.run(daemon.serve([(listener, address)]))
    assert sum("the daemon ends" in line for line in caplog.messages) == 1
