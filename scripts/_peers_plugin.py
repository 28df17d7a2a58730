"""A pytest plugin for other projects' tests: what they make is governed, and outcomes are written.

`scripts/peers` puts it into their pytest with `-p _peers_plugin`, and says by the environment:

CONCUR_PEERS_LIMIT    agents at once; without it nothing is wrapped (the plain run)
CONCUR_PEERS_AGENT    with 1 each test runs inside an agent of its own; without, each call is one
CONCUR_PEERS_ONLY     a file of node ids, one JSON string a line: the tests to run
CONCUR_PEERS_RESULTS  where to write the outcomes, one JSON line a test

A governed run wraps each openai client and each compiled graph right after its constructor, before
the test sees it, and puts the hook into LangChain.
"""

import functools
import inspect
import json
import os
import sys
import threading

import openai
import pytest

try:
    from langgraph.func import entrypoint
    from langgraph.graph import StateGraph
    from langgraph.pregel import Pregel
    from langgraph.pregel.remote import RemoteGraph
except ModuleNotFoundError:
    StateGraph = None

LIMIT = os.environ.get("CONCUR_PEERS_LIMIT")
AGENT = os.environ.get("CONCUR_PEERS_AGENT") == "1"
ONLY = os.environ.get("CONCUR_PEERS_ONLY")
RESULTS = os.environ.get("CONCUR_PEERS_RESULTS")

TOUCHED = "concur_peers_touched"
_state = {"touched": False, "governor": None}
_making = threading.local()


def pytest_configure(config):
    """Patch before any test module is imported."""
    if LIMIT is None:
        _note_use()
        return
    import concur_agents as ca

    _state["governor"] = ca.Governor(limit=int(LIMIT), ungoverned="pass" if AGENT else "agent")
    ca.install("langchain")
    _wrap_clients()
    if StateGraph is not None:
        _wrap_graphs()


# ------------------------------------------------------------------ the plain run: who is concerned


def _note_use():
    """Note in the plain run which tests make or use a client or a graph: wrapping concerns them."""
    from openai._base_client import BaseClient

    places = [(BaseClient, "__init__"), (BaseClient, "_build_request")]
    if StateGraph is not None:
        places += [(Pregel, "__init__"), (Pregel, "_defaults"), (RemoteGraph, "__init__")]
    for owner, name in places:
        setattr(owner, name, _noting(getattr(owner, name)))


def _noting(function):
    @functools.wraps(function)
    def noting(*args, **kwargs):
        _state["touched"] = True
        return function(*args, **kwargs)

    return noting


# ------------------------------------------------------------------ the governed runs: wrap


def _wrap_clients():
    for base in (openai.OpenAI, openai.AsyncOpenAI):
        for kind in _family(base):
            _make_once(kind)
        base.__init_subclass__ = _made_once(base)
        base.__new__ = _new_wrapped(base.__init__, lambda cls: True)


def _wrap_graphs():
    StateGraph.compile = _wrapping(StateGraph.compile)
    entrypoint.__call__ = _wrapping(entrypoint.__call__)
    for base in (Pregel, RemoteGraph):
        _make_once(base)
        # A compiled StateGraph is of a subclass; its compiler still works on it.
        base.__new__ = _new_wrapped(base.__init__, lambda cls, base=base: cls is base)


def _family(base):
    return [base, *(below for kind in base.__subclasses__() for below in _family(kind))]


def _wrapping(make):
    @functools.wraps(make)
    def make_wrapped(*args, **kwargs):
        return _state["governor"].wrap(make(*args, **kwargs))

    return make_wrapped


def _new_wrapped(constructor, concerns):
    """A `__new__` that makes a whole object and returns the wrapped one.

    `type.__call__` then runs the constructor on that one too, which `_make_once` skips.
    """

    def new(cls, *args, **kwargs):
        made = object.__new__(cls)
        copied = sys._getframe(1).f_code.co_name in ("__newobj__", "_reconstruct", "__reduce_ex__")
        ours = any(name.startswith("_concur") for kind in cls.__mro__ for name in vars(kind))
        if copied or ours or not concerns(cls):
            return made
        made.__init__(*args, **kwargs)
        wrapped = _state["governor"].wrap(made)
        vars(wrapped)["_peers_made"] = True
        return wrapped

    new.__wrapped__ = constructor  # for inspect.signature
    return staticmethod(new)


def _make_once(kind):
    """Let the constructor of a class do nothing on an object that is made already."""
    if "__init__" not in vars(kind):
        return
    constructor = vars(kind)["__init__"]

    @functools.wraps(constructor)
    def construct_once(self, *args, **kwargs):
        if vars(self).pop("_peers_made", False):
            return None
        return constructor(self, *args, **kwargs)

    kind.__init__ = construct_once


def _made_once(base):
    """An `__init_subclass__` that makes ready the subclasses of tests."""

    def init_subclass(cls, **kwargs):
        super(base, cls).__init_subclass__(**kwargs)
        if not any(name.startswith("_concur") for name in vars(cls)):
            _make_once(cls)

    return classmethod(init_subclass)


# ------------------------------------------------------------------ each test


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep the tests that were asked for."""
    if ONLY is None:
        return
    with open(ONLY, encoding="utf-8") as handle:
        wanted = {json.loads(line) for line in handle}
    left_out = [item for item in items if item.nodeid not in wanted]
    items[:] = [item for item in items if item.nodeid in wanted]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Forget what an earlier test touched."""
    _state["touched"] = False
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    """Run the test in an agent, if each has one, and note what it touched."""
    if LIMIT is not None and AGENT and isinstance(item, pytest.Function):
        item.obj = _in_agent(item.obj, item.nodeid)
    try:
        return (yield)
    finally:
        fixtures = getattr(item, "funcargs", {}).values()
        clients = (openai.OpenAI, openai.AsyncOpenAI)
        if _state["touched"] or any(isinstance(value, clients) for value in fixtures):
            item.user_properties.append((TOUCHED, True))


def _in_agent(test, name):
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def run_async(*args, **kwargs):
            async with _state["governor"].agent(name):
                return await test(*args, **kwargs)

        return run_async

    @functools.wraps(test)
    def run(*args, **kwargs):
        with _state["governor"].agent(name):
            return test(*args, **kwargs)

    return run


# ------------------------------------------------------------------ what came of it


_outcomes = {}


def pytest_runtest_logreport(report):
    """Write one line when a test is over; with xdist, only its controller sees this file."""
    if RESULTS is None or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    outcome = _outcomes.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed"})
    if report.outcome == "failed":
        outcome["outcome"] = "failed"
        outcome.setdefault("text", f"{report.when}: {report.longreprtext[-4000:]}")
    elif report.outcome == "skipped" and outcome["outcome"] == "passed":
        outcome["outcome"] = "skipped"
    if report.when == "teardown" or report.when == "???":
        outcome["touched"] = (TOUCHED, True) in [tuple(each) for each in report.user_properties]
        with open(RESULTS, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(_outcomes.pop(report.nodeid)) + "\n")


def pytest_sessionfinish(session):
    """Write what never came to its end, as when a worker died."""
    if RESULTS is None or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    with open(RESULTS, "a", encoding="utf-8") as handle:
        handle.writelines(
            json.dumps({**outcome, "outcome": "failed", "touched": True}) + "\n"
            for outcome in _outcomes.values()
        )
