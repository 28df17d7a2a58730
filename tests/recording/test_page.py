"""The report: one page that needs nothing else, and draws what the recording holds."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess

import pytest

from concur_agents._text import wire_id
from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.recording import Recording, record
from concur_agents.recording import page as pages
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PLOTS = {"pressure", "agents", "hit-rate", "throughput", "waits", "lanes"}


def data_of(text: str) -> dict:
    return json.loads(re.search(r"(?m)^const D = (.*);$", text)[1])


def test_the_page_needs_no_network(batch):
    """It is sent around, and opened behind firewalls."""
    text = page(read_timeline(batch), title="run.jsonl")
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)
    assert "/*DATA*/" not in text


def test_lanes_and_series_hold_the_recorded_numbers(batch):
    timeline = read_timeline(batch)
    data = data_of(page(timeline, title="run.jsonl"))
    assert [lane["id"] for lane in data["lanes"]] == sorted(
        timeline.lanes, key=lambda name: (timeline.lanes[name].segments[0].from_s, name)
    )
    states = data["states"]
    for lane in data["lanes"]:
        flat = lane["segments"]
        segments = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        assert all(before[2] == after[1] for before, after in itertools.pairwise(segments))
        waited = sum(
            end - start for state, start, end in segments if states[state] in ("queued", "paused")
        )
        assert waited == pytest.approx(lane["waited_s"], abs=0.05)
    assert len(data["t"]) == len(timeline.samples) == len(data["series"]["pressure_tokens"])
    assert data["series"]["capacity_tokens"][-1] == 48_000
    assert max(data["series"]["shadow_agents"]) >= 4
    changes = timeline.limit_changes
    cuts = [item.reason for item in changes if item.reason in ("cut", "blind")]
    assert [reason for _, reason in data["limit_changes"]] == cuts
    assert dict(data["facts"])["agents"] == "12"


def test_a_page_of_several_pools_has_each_of_them(batch_of_three):
    timeline = read_timeline(batch_of_three)
    data = data_of(page(timeline, title="run.jsonl"))
    assert [pool["name"] for pool in data["pools"]] == list(timeline.pools)
    for pool, own in zip(data["pools"], timeline.pools.values(), strict=True):
        assert len(pool["t"]) == len(own.samples) == len(pool["series"]["pressure_tokens"])
        assert len(pool["share"]) == len(data["t"])
        assert pool["steps"] == own.steps > 0
    assert data["pools"][1]["down_s"] > 60
    assert None in data["pools"][1]["share"], "a gap while it is down"
    total = data["series"]["capacity_tokens"][-1]
    assert total == sum(pool["series"]["capacity_tokens"][-1] for pool in data["pools"])
    assert {wait[6] for wait in data["waits"]} == {0, 1, 2}
    where = {lane["id"]: [data["pools"][pool]["name"] for _, pool in lane["pools"]]
             for lane in data["lanes"]}  # fmt: skip
    assert where == {
        name: [pool for _, pool in lane.pools] for name, lane in timeline.lanes.items()
    }


def test_an_id_cannot_break_out_of_the_page(tmp_path):
    """Ids come from data sets, and data sets from anywhere."""
    name = "</script><script>alert(1)</script>\u2028"
    recorded, recorder = record(Regulator(make_law("fixed")), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive(name, 0.0)
        recorded.leave(name, 1.0)
    text = page(read_timeline(Recording(recorder.path)), title=name)
    assert text.count("</script>") == 1
    assert data_of(text)["lanes"][0]["id"] == wire_id(name)


def test_long_recordings_are_thinned_out_and_keep_their_sums(tmp_path, monkeypatch):
    """A night of a thousand agents must still open on a phone."""
    monkeypatch.setattr(pages, "MOST_SAMPLES", 50)
    monkeypatch.setattr(pages, "MOST_SEGMENTS", 100)
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("a", 0.0)
        for second in range(400):
            recorded.begin_step("a", float(second))
            recorded.end_step("a", second + 0.0625, Usage(10, 10))
            recorded.tick(Reading(at_s=second), second + 0.5)
    timeline = read_timeline(Recording(recorder.path))
    data = data_of(page(timeline, title="x"))
    assert len(timeline.samples) == 400
    assert len(data["t"]) == 50
    assert sum(data["series"]["output_tokens_per_s"]) / 50 == pytest.approx(10, rel=0.1)
    (lane,) = data["lanes"]
    flat = lane["segments"]
    assert len(flat) // 3 < 500
    assert sum(flat[2::3]) - sum(flat[1::3]) == pytest.approx(399.5)


@pytest.mark.parametrize("size", ["1200,900", "360,740"])
@pytest.mark.parametrize("kind", ["batch", "empty", "fleet"])
def test_a_browser_draws_every_plot_without_a_complaint(
    batch, batch_of_three, tmp_path, size, kind
):
    """The page has no other judge: a script error would leave it blank."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    if kind == "fleet":
        batch = batch_of_three
    elif kind == "empty":
        recorder = record(Regulator(make_law("fixed")), tmp_path / "run.jsonl")[1]
        recorder.close()
        batch = Recording(recorder.path)
    text = page(read_timeline(batch), title="run.jsonl")
    probe = """<script>
      const report = {};
      for (const canvas of document.querySelectorAll("canvas[data-plot]")) {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let painted = 0;
        for (let i = 3; i < pixels.length; i += 4) painted += pixels[i] > 0;
        report[canvas.dataset.plot] = [Number(canvas.dataset.drawn), painted];
      }
      const used = {};
      if (D.lanes.length) {
        const plot = document.querySelector("canvas[data-plot=pressure]");
        const box = plot.getBoundingClientRect();
        const point = (kind, share) => plot.dispatchEvent(new PointerEvent(kind, {
          clientX: box.left + share * box.width, clientY: box.top + 50, pointerId: 1 }));
        const before = $("range").textContent;
        point("pointermove", 0.5);
        used.tip = $("tip").textContent;
        point("pointerdown", 0.4); point("pointermove", 0.6); point("pointerup", 0.6);
        drawAll();
        used.zoomed = [before, $("range").textContent, view[1] - view[0]];
        $("reset").click();
        drawAll();
        used.whole = $("range").textContent;
        const full = Number(plot.dataset.drawn);
        document.querySelector(".legend button").click();
        drawAll();
        used.hidden = full - Number(plot.dataset.drawn);
        $("find").value = D.lanes[0].id;
        $("find").dispatchEvent(new Event("input"));
        used.found = rows.length;
      }
      if (D.pools.length) {
        const full = Number(document.querySelector("canvas[data-plot=pressure]").dataset.drawn);
        $("find").value = "";
        $("pool").value = "1";
        $("pool").dispatchEvent(new Event("change"));
        drawAll();
        const one = document.querySelector("canvas[data-plot=pressure]");
        used.pool = [full, Number(one.dataset.drawn), rows.length, waits.length,
          $("pools").tBodies[0].rows.length, plots.map((plot) => plot.name)];
      }
      document.body.dataset.used = JSON.stringify(used);
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
      document.body.dataset.report = JSON.stringify(report);
    </script></body>"""
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", probe), encoding="utf-8")
    ran = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={size}",
            "--dump-dom",
            path.as_uri(),
        ],
        # Because Chromium opens a Unix socket in TMPDIR, whose path may have 107 characters only.
        env={**os.environ, "TMPDIR": "/tmp"},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    assert 'data-ready="true"' in ran.stdout, ran.stderr[-2000:]
    assert 'data-wide="false"' in ran.stdout, "it does not fit the width of a phone"
    report = json.loads(html.unescape(re.search(r'data-report="(.*?)"', ran.stdout)[1]))
    if kind != "empty":
        assert report.keys() == PLOTS | ({"pool-pressure"} if kind == "fleet" else set())
        assert all(drawn > 10 and painted > 500 for drawn, painted in report.values()), report
        used = json.loads(html.unescape(re.search(r'data-used="(.*?)"', ran.stdout)[1]))
        before, zoomed, length_s = used["zoomed"]
        whole_s = data_of(text)["end_s"]
        assert 0.1 * whole_s < length_s < 0.3 * whole_s, "a drag over a fifth of the plot"
        assert before != zoomed
        assert used["whole"] == before
        assert "pressure: " in used["tip"]
        assert used["hidden"] > 0, "a click on a name in the legend hides its series"
        assert used["found"] == 1
