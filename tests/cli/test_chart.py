"""Charts of text."""

from concur_agents.cli.chart import chart


def test_the_chart_draws_the_area_and_the_line_where_they_are():
    rows = [text.plain for text in chart([0, 5, 10, None], [10, 10, 5, 5], width=5, height=2)]
    assert rows == [" ━━█ ", "  █━━"]
    assert [text.plain for text in chart([], width=3, height=1)] == ["   "]
    assert chart([0.5], width=1, height=1, most=1.0)[0].plain == "▄"
