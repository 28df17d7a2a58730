"""The engines of one governor."""

from concur_agents import Governor
from concur_agents.core import Reading


def test_a_child_process_has_the_pools_that_were_not_removed(scripted_engines):
    urls = scripted_engines({f"http://gpu{n}:8000": lambda now: Reading(at_s=now) for n in (1, 2)})
    with Governor(urls, background=False) as governor:
        governor.remove_pool(urls[0])
        governor._after_fork()
        assert list(governor.snapshot().pools) == urls[1:]
        assert list(governor.addresses) == urls[1:]
