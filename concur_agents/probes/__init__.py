"""Reading engines: a metrics page in, a :class:`~concur_agents.core.Reading` out.

`parse_page` is pure; `HttpProbe` fetches; `ReplayProbe` replays recorded pages. What each name
on a page means stands in one table per engine: ``vllm.py``, ``sglang.py``, ``dynamo.py``.
"""

from concur_agents.probes.http import HttpProbe
from concur_agents.probes.page import SIGNALS, PageReading, parse_page
from concur_agents.probes.probe import Probe
from concur_agents.probes.replay import ReplayProbe

__all__ = ["SIGNALS", "HttpProbe", "PageReading", "Probe", "ReplayProbe", "parse_page"]
