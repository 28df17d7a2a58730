"""The live page: events for every browser, and a page that draws them."""

import asyncio
import html
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from concur_agents.observe.frame import Point
from concur_agents.observe.live import LivePage
from concur_agents.sim.listener import listen, url_of, uvicorn_server

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TRAIL = [Point(float(s), 1000, None, 60.0 * s, s, 0.0) for s in range(10)]


async def events(page):
    """(name, data) of each server-sent event, as a browser receives them."""
    sent = asyncio.Queue()
    scope = {"type": "http", "method": "GET", "path": "/events", "headers": []}
    browser = asyncio.ensure_future(page.app(scope, asyncio.Event().wait, sent.put))
    start = await sent.get()
    assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
    while (message := await sent.get())["more_body"]:
        name, data, *end = message["body"].decode().split("\n")
        assert end == ["", ""]
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
    await browser


async def test_each_browser_gets_the_trail_then_frames_then_the_end(frame):
    page = LivePage("gov.sock")
    page.show(frame, TRAIL)
    browser = events(page)
    assert await anext(browser) == ("trail", [list(point) for point in TRAIL])
    name, first = await anext(browser)
    assert (name, first["point"][0]) == ("frame", 10.0)
    assert first["about"] == "working_set on 2 pools, 0:10"
    assert "issue-&lt;17&gt;" in first["lists"]
    assert "gpu1:8000" in first["summary"]
    page.show(replace(frame, at_s=11.0), [*TRAIL, frame.point])
    name, second = await anext(browser)
    assert (name, second["point"][0]) == ("frame", 11.0)
    page.end()
    assert [name async for name, _ in browser] == ["end"]
    late = [event async for event in events(page)]
    assert [name for name, _ in late] == ["trail", "frame", "end"]
    assert len(late[0][1]) == len(TRAIL) + 1


async def test_a_browser_that_reads_slowly_misses_frames_and_delays_no_other(frame):
    page = LivePage("gov.sock")
    page.show(frame, TRAIL)
    slow, quick = events(page), events(page)
    for browser in (slow, quick):
        assert [(await anext(browser))[0], (await anext(browser))[0]] == ["trail", "frame"]
    for second in (11.0, 12.0, 13.0):
        page.show(replace(frame, at_s=second), TRAIL)
    assert (await anext(quick))[1]["point"][0] == 13.0
    page.end()
    assert [name async for name, _ in slow] == ["frame", "end"]


async def test_the_page_needs_no_other_file():
    page = LivePage("</script><b>")
    transport = httpx.ASGITransport(page.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/")
        assert (await client.post("/")).status_code == 405, "it can be read, and nothing else"
    text = answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|src=\"|href=|@import|url\(", text)
    assert not re.search(r"/\*(DATA|STYLE|DRAWING)\*/", text)
    assert text.count("</script>") == 1


class Served:
    """A page whose frames begin when a browser asks for them; it stops by itself."""

    def __init__(self, frame):
        self._frame = frame
        self.page = LivePage("gov.sock")
        self._asked = asyncio.Event()
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        self._tasks = []
        self._server = uvicorn_server(self._app, ready=self._ready, closing=self.page.end)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()

    def _ready(self):
        self._tasks.append(asyncio.ensure_future(self._show()))

    async def _app(self, scope, receive, send):
        if scope.get("path") == "/events":
            self._asked.set()
        await self.page.app(scope, receive, send)

    async def _show(self):
        await self._asked.wait()
        for second in range(10, 15):
            self.page.show(replace(self._frame, at_s=float(second)), TRAIL)
            await asyncio.sleep(0.02)
        self.page.end()


@pytest.mark.parametrize("size", ["1200,900", "360,740"])
def test_a_browser_follows_without_a_complaint(frame, tmp_path, size):
    """At the width of a desk and of a phone; a script error would leave the page blank."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with Served(frame) as served:
        ran = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
                *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
                *(f"--window-size={size}", "--virtual-time-budget=5000", "--dump-dom", served.url),
            ],
            # Because Chromium opens a Unix socket in TMPDIR, and its path is bounded.
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": "/tmp"},
            capture_output=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
    assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
    dom = ran.stdout
    assert 'data-ended="true"' in dom, ran.stderr[-2000:]
    assert int(re.search(r'data-frames="(\d+)"', dom)[1]) >= 1
    assert 'data-wide="false"' in dom, "it fits the width of a phone"
    said = html.unescape(re.sub(r"<[^>]*>", " ", dom.partition("<body")[2].partition("<script")[0]))
    said = " ".join(said.split())
    assert "working_set on 2 pools, 0:14; it has ended" in said
    for text in ("gpu1:8000", "down", "issue-<17>", "1 of 1 agents active", "issue-18"):
        assert text in said
    plots = dict(re.findall(r'<canvas data-plot="([\w-]+)"[^>]*data-drawn="(\d+)"', dom))
    assert plots.keys() == {"pressure", "agents", "hit-deficit"}
    assert min(map(int, plots.values())) > 10
