"""What turns the pure regulator into something threads and event loops can stand in front of.

    host, reads         the parts together, made and ended; what they show
    agent, step         the handles that users hold
    monitor             the one lock: decides there, acts outside of it
    sessions, session   which agents are here, and what the regulator hears of them
    tickets, waiting, waiter     the tickets that are waited for, how, and what wakes the caller
    ticker, poller      what time brings, and how well the engine can be read
    events, recording_session    what watchers and recordings get

Nothing in here decides: the regulator does.
"""
