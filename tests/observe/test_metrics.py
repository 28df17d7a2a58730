"""Prometheus numbers, and the dashboard that shows them."""

import asyncio
import gc
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from concur_agents import ConfigError, Governor
from concur_agents.core import Reading, Usage, make_law
from concur_agents.observe.metrics import export
from concur_agents.testing import ScriptedProbe, run, virtual_governor


def scraped(registry):
    """(name, labels without `governor`) -> value, as a scraper would read the page."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "governor"}
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


def engine(now: float) -> Reading | None:
    if 30 <= now < 32:
        return None
    return Reading(at_s=now, kv_usage=0.5, capacity_tokens=10_000, running=2, waiting=1,
                   hit_tokens_total=80 * now, query_tokens_total=100 * now)  # fmt: skip


@pytest.fixture(scope="module")
def busy():
    """The numbers in the middle of a run in which everything has happened, and the snapshot."""

    async def life(governor, name):
        async with governor.agent(name) as agent:
            for tokens in (2500, 6500):
                async with agent.step(prompt_tokens=tokens) as step:
                    await asyncio.sleep(10)
                    step.record(Usage(tokens, 100, tokens // 2))
                await asyncio.sleep(1)
            async with agent.step():
                await asyncio.sleep(15)

    async def main():
        loop = asyncio.get_running_loop()
        registry = CollectorRegistry()
        probe = ScriptedProbe(engine, loop.time)
        options = {
            "max_wait_s": 20.0,
            "shadow": make_law("cache_aimd", start=4),
            "law": "working_set",
        }
        async with virtual_governor(probe=probe, **options) as governor:
            export(governor, registry)
            agents = [asyncio.ensure_future(life(governor, f"a{n}")) for n in range(4)]
            await asyncio.sleep(110)
            found, snapshot = scraped(registry), governor.snapshot()
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
        return found, snapshot

    return run(main())


def test_gauges_are_those_of_the_snapshot(busy):
    found, snapshot = busy
    for state in ("reasoning", "acting", "paused", "queued", "suspended"):
        assert found["concur_agents", ("state", state)] == getattr(snapshot, state)
    assert found["concur_pressure_tokens",] == pytest.approx(snapshot.pressure_tokens)
    assert found["concur_capacity_tokens",] == 10_000
    assert found["concur_limit_tokens",] == snapshot.limit.tokens
    assert ("concur_limit_agents",) not in found, "no bound is no sample"
    assert found["concur_shadow_limit_agents",] == snapshot.shadow.state.limit.agents
    assert found["concur_engine_running_requests",] == 2
    assert found["concur_longest_wait_seconds",] == pytest.approx(snapshot.longest_wait_s)
    (info,) = (key for key in found if key[0] == "concur_governor_info")
    assert ("law", "working_set") in info


def test_counters_and_histograms_add_up(busy):
    found, snapshot = busy
    assert found["concur_pauses_total",] == snapshot.pauses_total > 0
    steps = found["concur_steps_total",]
    assert steps >= 4
    assert found["concur_prompt_tokens_total",] >= 4000
    assert found["concur_cached_tokens_total",] == found["concur_prompt_tokens_total",] / 2
    told = steps - found["concur_steps_untold_total",]
    assert found["concur_output_tokens_total",] == 100 * told
    assert steps > told > 2
    assert found["concur_step_seconds_count",] == steps
    assert 10 * steps <= found["concur_step_seconds_sum",] <= 15 * steps
    assert found["concur_wait_seconds_count", ("kind", "queued")] >= 1
    assert found["concur_wait_seconds_count", ("kind", "paused")] >= 1
    assert found["concur_poll_failures_total",] == snapshot.poll_failures_total > 0
    assert found["concur_polls_total",] > 50
    assert sum(value for key, value in found.items() if key[0] == "concur_limit_changes_total") > 0


def test_every_name_ends_with_its_unit(busy, fleet):
    units = ("_tokens", "_agents", "_seconds", "_ratio", "_requests", "_total", "_info", "_bucket",
             "_sum", "_count", "_created", "_passing", "_down")  # fmt: skip
    assert {key[0] for key in (*busy[0], *fleet[0]) if not key[0].endswith(units)} == set()
    assert all(key[0].startswith("concur_") for key in busy[0])


def test_several_governors_share_a_registry_and_each_name_stands_once():
    registry = CollectorRegistry()
    with Governor(limit=1) as one, Governor(limit=2) as two:
        stop = export(one, registry, name="one")
        export(two, registry, name="two")
        page = generate_latest(registry).decode()
        assert page.count("# TYPE concur_agents gauge") == 1
        assert 'concur_limit_agents{governor="one"} 1.0' in page
        assert 'concur_limit_agents{governor="two"} 2.0' in page
        with pytest.raises(ConfigError, match="exports a governor 'one' already"):
            export(two, registry, name="one")
        stop()
        stop()
        assert 'governor="one"' not in generate_latest(registry).decode()
        export(one, registry, name="one")
        assert 'governor="one"' in generate_latest(registry).decode()


def test_an_export_keeps_no_governor_alive():
    registry = CollectorRegistry()
    export(Governor(limit=1), registry)
    gc.collect()
    assert generate_latest(registry) == b""


GPU1, GPU2 = "http://gpu1:8000", "http://gpu2:8000"


def fleet_page(scripted_engines, **options):
    """Two engines, of which the second dies for good at 30 s; the numbers at 60 s."""

    def good(now):
        return Reading(at_s=now, kv_usage=0.5, capacity_tokens=10_000, running=2)

    async def life(governor, name):
        async with governor.agent(name) as agent:
            while True:
                async with agent.step(prompt_tokens=2500) as step:
                    await asyncio.sleep(4)
                    is_dead = agent.pool == GPU2 and governor._clock() > 30
                    step.record(None if is_dead else Usage(2500, 100, 1000))
                await asyncio.sleep(1)

    async def main():
        registry = CollectorRegistry()
        urls = scripted_engines({GPU1: good, GPU2: lambda now: good(now) if now < 30 else None})
        async with virtual_governor(urls, **options) as governor:
            export(governor, registry)
            agents = [asyncio.ensure_future(life(governor, f"a{n}")) for n in range(9)]
            await asyncio.sleep(60)
            found, snapshot = scraped(registry), governor.snapshot()
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
        return found, snapshot

    return run(main())


@pytest.fixture
def fleet(scripted_engines):
    return fleet_page(scripted_engines, limit=3, max_open=8)


def test_each_pool_has_series_of_its_own_and_their_sum_is_the_whole(fleet):
    found, snapshot = fleet
    one, two = ("pool", GPU1), ("pool", GPU2)
    for state in ("reasoning", "acting", "paused", "queued", "suspended"):
        rows = [
            value
            for key, value in found.items()
            if key[0] == "concur_agents" and ("state", state) in key
        ]
        assert sum(rows) == getattr(snapshot, state), state
    assert snapshot.queued > 0
    assert found["concur_agents", ("pool", ""), ("state", "queued")] > 0
    assert found["concur_pressure_tokens", one] == snapshot.pools[GPU1].pressure_tokens > 0
    assert ("concur_pressure_tokens",) not in found, "or a sum would count it twice"
    assert found["concur_capacity_tokens", one] == 10_000
    assert (found["concur_pool_down", one], found["concur_pool_down", two]) == (0, 1)
    assert found["concur_blind_seconds", two] > 29 > 2 > found["concur_blind_seconds", one]
    assert found["concur_longest_wait_seconds", ("pool", "")] == snapshot.longest_wait_s
    assert found["concur_engine_kv_usage_ratio", one] == 0.5
    assert found["concur_passing",] == 0
    assert found["concur_poll_failures_total", two] > 3
    assert found["concur_poll_failures_total", one] == 0


def test_counters_of_a_pool_count_what_happened_there(fleet):
    found, snapshot = fleet
    for pool in (GPU1, GPU2):
        at = ("pool", pool)
        steps = found["concur_steps_total", at]
        assert found["concur_step_seconds_count", at] == steps > 5
        told = steps - found["concur_steps_untold_total", at]
        assert found["concur_cached_tokens_total", at] == 1000 * told
        assert found["concur_pauses_total", at] == snapshot.pools[pool].pauses_total
        assert found["concur_wait_seconds_count", ("kind", "queued"), at] >= 3
    assert found["concur_steps_untold_total", ("pool", GPU2)] > 0
    assert found["concur_agents_done_total",] == 0


def test_governors_with_one_pool_and_with_several_share_a_registry():
    registry = CollectorRegistry()
    with Governor(limit=1) as one, Governor([GPU1, GPU2], limit=2) as two:
        export(one, registry, name="one")
        export(two, registry, name="two")
        page = generate_latest(registry).decode()
        assert page.count("# TYPE concur_agents gauge") == 1
        assert 'concur_limit_agents{governor="one"} 1.0' in page
        assert f'concur_limit_agents{{governor="two",pool="{GPU1}"}} 2.0' in page


def dashboard():
    text = files("concur_agents").joinpath("observe/dashboards/grafana.json").read_text("utf-8")
    return json.loads(text)


@pytest.fixture
def exported(busy, fleet, scripted_engines):
    """Name of a sample -> the labels that it may have."""
    labels = {}
    registry = CollectorRegistry()
    with Governor(limit=3, shadow="working_set") as governor:  # the other kind of limit, each
        export(governor, registry)
        by_tokens, _ = fleet_page(scripted_engines)
        for key in (*busy[0], *fleet[0], *by_tokens, *scraped(registry)):
            found = {name for name, _ in key[1:]} | {"governor"}
            labels.setdefault(key[0], set()).update(found)
    return labels


SELECTOR = re.compile(r"\b(concur_\w+)(?:\{([^}]*)\})?(?:\[(\S+?)\])?")
GRAFANAS = {"__rate_interval", "__interval", "__range"}
UNITS = {"_ratio": "percentunit", "_seconds": "s"}
BUCKETS_AND_KIN = re.compile(r"_(bucket|sum|count|created)$")


def targets():
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel, target


def test_the_dashboard_asks_only_for_names_and_labels_that_are_exported(exported):
    """A renamed metric would leave an empty panel, unnoticed until the night it counts."""
    asked = set()
    for panel, target in targets():
        expression = target["expr"]
        found = SELECTOR.findall(expression)
        assert found, panel["title"]
        labels = set()
        for name, matchers, span in found:
            assert name in exported, f"{panel['title']}: no {name}"
            asked.add(name)
            labels |= exported[name]
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= exported[name], f"{panel['title']}: {name} has no {used}"
            assert 'governor=~"$governor"' in matchers, "the choice at the top holds for each panel"
            has_pool = "pool" in exported[name]
            assert has_pool == ('pool=~"$pool"' in matchers), f"so does that of pools: {name}"
            is_counter = name.endswith(("_total", "_bucket"))
            assert bool(span) == is_counter, f"{name}: a counter is read as a rate, a gauge is not"
        grouped = re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression)
        for label in {word.strip() for words in grouped for word in words.split(",")}:
            assert label in labels, f"{panel['title']}: by {label}"
        kept = labels
        if grouped:
            kept = {word.strip() for words in grouped for word in words.split(",")}
        elif re.match(r"(sum|max|min|avg)\(", expression):
            kept = set()
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert named <= kept, f"{panel['title']}: nothing is left of {named} in the legend"
        for variable in re.findall(r"\$(\w+)", expression):
            assert variable in GRAFANAS | {"governor", "pool"}
    shown = {BUCKETS_AND_KIN.sub("", name) for name in asked}
    every = {BUCKETS_AND_KIN.sub("", name) for name in exported}
    not_shown = {"concur_governor_info", "concur_polls_total"} | {
        name for name in every if name.startswith("concur_engine_") and "requests" in name
    }
    assert every - shown == not_shown


def test_the_dashboard_shows_each_number_in_its_unit():
    for panel, target in targets():
        unit = panel["fieldConfig"]["defaults"]["unit"]
        name = SELECTOR.findall(target["expr"])[0][0]
        stem = BUCKETS_AND_KIN.sub("", name)
        wanted = next((unit for end, unit in UNITS.items() if stem.endswith(end)), "short")
        if " / " in target["expr"]:
            wanted = "percentunit"
        assert unit == wanted, f"{panel['title']}: {unit} for {target['expr']}"


def test_the_dashboard_has_what_grafana_needs_to_load_it():
    board = dashboard()
    panels = board["panels"]
    assert board["schemaVersion"] >= 39
    assert re.fullmatch(r"[\w-]{1,40}", board["uid"])
    assert "id" not in board, "it would be taken for a board that is there already"
    assert board["title"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place.keys() == {"x", "y", "w", "h"}
        assert 0 <= place["x"] <= 24 - place["w"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends)
        for rule in panel["fieldConfig"]["overrides"]:
            matcher = rule["matcher"]
            if matcher["id"] == "byRegexp":
                pattern = re.compile(matcher["options"].strip("/"))
                assert any(pattern.search(legend) for legend in legends), matcher
            else:
                assert matcher["id"] == "byName"
                assert any("{{" in legend or legend == matcher["options"] for legend in legends)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "no two panels overlap"


def test_the_dashboard_finds_its_data_source_wherever_it_is_loaded():
    """No uid of the Grafana that it was made on: the variable at the top is the only source."""
    board = dashboard()
    source, governor, pool = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        "datasource", "datasource", "prometheus",
    )  # fmt: skip
    assert (governor["name"], governor["type"], governor["multi"]) == ("governor", "query", True)
    assert governor["datasource"]["uid"] == "${datasource}"
    assert governor["query"]["query"] == "label_values(concur_agents, governor)"
    assert (pool["name"], pool["type"], pool["multi"]) == ("pool", "query", True)
    assert pool["datasource"]["uid"] == "${datasource}"
    assert pool["query"]["query"] == 'label_values(concur_agents{governor=~"$governor"}, pool)'
    assert pool["allValue"] == ".*", "a governor with one pool has no such label"
    assert "__inputs" not in board
    uids = re.findall(r'"uid": "([^"]*)"', json.dumps(board))
    assert set(uids) == {"${datasource}", board["uid"]}


def test_prometheus_itself_can_read_every_expression(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    rules = [
        {
            "record": f"test:panel_{panel['id']}_{target['refId']}",
            "expr": target["expr"]
            .replace("$__rate_interval", "1m")
            .replace("$governor", ".*")
            .replace("$pool", ".*"),
        }
        for panel, target in targets()
    ]
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    ran = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert f"{len(rules)} rules found" in ran.stdout


def test_the_page_of_the_docs_lists_every_name(exported):
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    text = page.read_text("utf-8")
    stems = {BUCKETS_AND_KIN.sub("", name) for name in exported}
    assert {stem for stem in stems if f"`{stem}" not in text} == set()
