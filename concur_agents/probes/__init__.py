"""Probes read engines: they turn a metrics page into a `Reading`.

`parse_page` is pure; `HttpProbe` fetches pages; `ReplayProbe` replays recorded ones. One table per
engine says what each name on a page means: `vllm.py`, `sglang.py`, `dynamo.py`.
"""

from concur_agents.probes.http import HttpProbe
from concur_agents.probes.page import SIGNALS, PageReading, parse_page
from concur_agents.probes.probe import Probe
from concur_agents.probes.replay import ReplayProbe

__all__ = ["SIGNALS", "HttpProbe", "PageReading", "Probe", "ReplayProbe", "parse_page"]
