"""What time brings to the agents of a daemon's clients, in virtual time."""

from concur_agents import Governor
from concur_agents.daemon import Daemon
from concur_agents.testing import ManualClock
from concur_agents.wire.messages import Hello, Op, Ops


def test_an_agent_that_only_time_keeps_waiting_is_let_in_at_its_instant():
    """And not with the next quarter of a second: the governor's thread is asked to wake for it."""
    clock, due = ManualClock(), []
    options = {"limit": 1, "max_wait_s": 10.0, "background": False, "clock": clock}
    with Governor(**options) as governor:
        governor.on_due = lambda: due.append(clock())
        daemon = Daemon(governor, settle_s=0.0)
        governor.start()
        assert governor.beat() is None
        daemon.hub.connect(1)
        hello, a = Hello(1, "s", 1, 0, 0), Op("arrive", "a", 1, {})
        daemon._decide(lambda now: daemon.hub.receive(1, hello, now))
        daemon._decide(lambda now: daemon.hub.receive(1, Ops((a,)), now))
        governor.beat()
        due.clear()
        clock.advance(5.0)
        b = Op("arrive", "b", 2, {})
        daemon._decide(lambda now: daemon.hub.receive(1, Ops((b,)), now))
        assert due == [5.0]
        assert governor.beat() == 10.0
