"""Event loops that are not asyncio's: a synchronous wait on their thread would stop them."""

import asyncio
import sys
import threading
import types

import pytest

import concur_agents as ca
from concur_agents.adapters import call as calls
from concur_agents.runtime.waiter import foreign_loop


@pytest.fixture
def trio(monkeypatch):
    """Trio as far as it is asked: one thread runs its loop."""
    runs = set()
    module = types.ModuleType("trio")
    module.lowlevel = types.SimpleNamespace(in_trio_run=lambda: threading.get_ident() in runs)
    monkeypatch.setitem(sys.modules, "trio", module)
    runs.add(threading.get_ident())
    return runs


@pytest.fixture
def curio(monkeypatch):
    """Some other library, which says so through sniffio's thread-local."""
    module = types.ModuleType("sniffio")
    module.thread_local = threading.local()
    module.thread_local.name = "curio"
    monkeypatch.setitem(sys.modules, "sniffio", module)


@pytest.mark.parametrize("library", ["trio", "curio"])
def test_a_plain_with_that_would_wait_raises(request, library):
    """It used to freeze the loop for good."""
    request.getfixturevalue(library)
    with ca.Governor(limit=1) as gov, gov.agent("a") as first:
        with pytest.raises(ca.GateError, match=f"(?s){library} runs an event loop.*`async with`"):
            gov.agent("b", detached=True).open_sync()
        assert gov.snapshot().queued == 0
        with first.step():
            pass  # one that waits for nothing passes


def test_another_thread_of_the_same_program_may_wait(trio):
    with ca.Governor(limit=1) as gov, gov.agent("a"):
        found = []

        def wait():
            try:
                gov.agent("b", detached=True, timeout_s=0.05).open_sync()
            except TimeoutError as error:
                found.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(20)
        assert found


def test_async_with_outside_of_asyncio_says_what_to_do(trio):
    async def enter(gov):
        async with gov.agent("a"):
            pass

    with ca.Governor(limit=1) as gov:
        coroutine = enter(gov)
        with pytest.raises(ca.GateError, match="needs asyncio, and trio runs here"):
            coroutine.send(None)


def test_calls_of_a_client_pass_where_asyncio_does_not_run(trio, caplog):
    """A program on trio works without us, so that it has to work with us."""
    with ca.Governor(limit=1) as gov:
        for _ in range(2):
            coroutine = calls.begin(gov, "/v1/chat/completions")
            with pytest.raises(StopIteration) as ended:
                coroutine.send(None)
            assert ended.value.value is None, "no call of ours"
    assert caplog.text.count("calls pass ungoverned where no event loop of asyncio runs") == 1


def test_asyncio_is_not_foreign():
    async def main():
        assert foreign_loop() is None

    asyncio.run(main())
    assert foreign_loop() is None
