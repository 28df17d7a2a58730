"""A call inside a call: a step that begins inside an open step of its agent is part of that one."""

import asyncio
import threading

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.testing import run, virtual_governor

USED = Usage(prompt_tokens=100, completion_tokens=10)


def begun(gov):
    """The agents whose steps began, in order."""
    seen = []
    gov.on_event(lambda e: seen.append(e.agent) if e.kind == "step_began" else None)
    return seen


def test_a_step_in_a_step_is_one_step_with_the_usage_of_the_inner_one():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            async with agent.step():
                async with agent.step() as inner:
                    inner.record(USED)
                assert agent.state == "reasoning", "the outer step goes on"
            assert agent.state == "acting"
            assert (agent.stats.steps, agent.stats.prompt_tokens) == (1, 100)

    run(main())


def test_the_tasks_that_a_step_starts_are_part_of_it():
    """`asyncio.wait_for` made a task of its own on Python 3.11, and so a second step."""

    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            seen = begun(gov)

            async def call():
                async with agent.step() as step:
                    await asyncio.sleep(1)
                    step.record(USED)

            async with agent.step():
                await asyncio.gather(call(), call())
            assert seen == ["a"]
            await asyncio.gather(call(), call())
            assert seen == ["a", "a", "a"], "outside of a step, parallel calls are steps"

    run(main())


def test_a_thread_that_a_step_starts_is_part_of_it():
    with ca.Governor(limit=1) as gov, gov.agent("a") as agent:
        seen = begun(gov)

        def call():
            with agent.step() as step:
                step.record(USED)

        with agent.step():
            thread = threading.Thread(target=ca.bind(call))
            thread.start()
            thread.join()
        assert seen == ["a"]
        assert agent.stats.prompt_tokens == 100


def test_a_nested_agent_in_a_step_has_steps_of_its_own():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            seen = begun(gov)
            async with agent.step(), gov.agent("child") as child, child.step():
                await agent.checkpoint()  # of the outer agent: its step is found past the child's
            assert seen == ["a", "child"]

    run(main())


def test_a_checkpoint_in_a_step_leaves_that_step_as_it_is():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            async with agent.step():
                await agent.checkpoint()
                async with agent.step() as inner:
                    inner.record(USED)
            assert (agent.stats.steps, agent.stats.prompt_tokens) == (1, 100)

    run(main())


def test_after_a_gate_has_ended_the_step_around_it_goes_on():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            seen = begun(gov)
            async with agent.step():
                agent.done(USED, await agent.gate())
                async with agent.step():
                    pass
            assert seen == ["a"]
            assert agent.state == "acting"

    run(main())


def test_a_task_that_outlives_a_step_makes_steps_of_its_own():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            seen = begun(gov)

            async def later():
                await asyncio.sleep(1)
                async with agent.step():
                    pass

            async with agent.step():
                task = asyncio.ensure_future(later())
            await task
            assert seen == ["a", "a"]

    run(main())


def test_a_client_whose_answer_is_still_being_read_keeps_its_step():
    """What the drop-in client does around its tries."""

    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            ended = []
            with agent.step().around_tries(then=lambda: ended.append("a")):
                first = agent.step(100)
                await first.begin()
                first.finish(overloaded=True)
                second = agent.step(100)
                await second.begin()
            assert agent.state == "reasoning"
            second.record(USED)
            second.end()
            assert agent.state == "acting"
            assert ended == ["a"]
            assert (agent.stats.steps, agent.stats.prompt_tokens) == (1, 100)

    run(main())
