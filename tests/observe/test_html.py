"""A frame as HTML: what a notebook shows, and what the live page puts between its plots."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from concur_agents import Governor
from concur_agents.observe.frame import Active, PoolFrame, Waiting
from concur_agents.observe.html import lists_html, notebook_html, summary_html


def words(html):
    """The text between the tags; fails on a tag that is not closed."""
    found, open_tags = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            if open_tags[-1:] != ["style"]:
                found.append(data)

    Reader().feed(html)
    assert open_tags == []
    return " ".join(" ".join(found).split())


def test_pools_agents_waits_and_reasons_are_said(frame):
    said = words(notebook_html(frame))
    for text in (
        "Governor http://gpu0:8000 (working_set)",
        "reported reason",
        "25% of 2,000 tokens",
        "gpu0:8000 50% 900 tokens 1 1 90.0% reported",
        "gpu1:8000 50% - 1 1 90.0% down",
        "gpu1:8000 is down: HTTP 503",
        "Waiting: 3 agent pool state for why issue-<17> - paused 30.0 s 1 of 1 agents active",
        "and 2 more",
        "issue-18 - acting 9.0 s 500 3",
    ):
        assert text in said, said


def test_trouble_is_said(frame):
    shown = replace(frame, blind=True, stalls_total=2, overdue_total=1, reported_tokens=1500)
    said = words(summary_html(shown))
    assert "The engine cannot be read." in said
    assert "2 agents let in because nothing moved." in said
    assert "1 agents let in as overdue." in said
    assert "The engine reports 1,500 tokens; calls and hits prove more: 2,000 used." in said


def test_no_name_can_break_out(frame):
    """Ids come from data sets, and a notebook and the live page run what is in their HTML."""
    name = '<img src=x onerror="alert(1)">'
    shown = replace(
        frame,
        url=name,
        waiting=[Waiting(agent=name, state="paused", waited_s=1, why=name, pool=name)],
        active=[Active(agent=name, state="acting", for_s=1, tokens=1, steps=1, pool=name)],
        pools=[
            PoolFrame(pool=name, active=0, waiting=0, pressure_tokens=0, capacity_tokens=None,
                      limit_tokens=None, limit_agents=None, hit_rate=None, reason=name)
        ],
    )  # fmt: skip
    for html in (notebook_html(shown), summary_html(shown), lists_html(shown)):
        assert "<img" not in html
        assert "&lt;img src=x" in html


@pytest.mark.parametrize("more", [{}, {"limit_tokens": 9000}, {"pressure_tokens": 9000}])
def test_the_bar_of_the_pool_is_never_wider_than_the_pool(frame, more):
    html = summary_html(replace(frame, reasoning_tokens=1500, pools=[], **more))
    widths = [float(share) for share in re.findall(r"width:([\d.]+)%", html)]
    assert 0 < sum(widths) <= 100.1


def test_a_notebook_shows_a_governor():
    with Governor(limit=1) as governor, governor.agent("issue-17"):
        said = words(governor._repr_html_())
        assert "Active: 1 agent state for tokens steps issue-17 acting" in said
        assert "Waiting: 0 none" in said
    assert "(fixed) closed" in words(governor._repr_html_())


def test_its_style_changes_nothing_outside_of_it(frame):
    """A notebook shows other things, too."""
    (style,) = re.findall(r"(?s)<style>(.*?)</style>", notebook_html(frame))
    rules = re.sub(r"(?s)/\*.*?\*/|@media[^{]*\{", "", style)
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", rules):
        for selector in selectors.split(","):
            assert ".concur" in selector, selector
