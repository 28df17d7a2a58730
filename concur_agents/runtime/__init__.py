"""What turns the pure regulator into something threads and event loops can stand in front of.

    host                the parts together, shown and ended
    agent, step         the handles that users hold
    monitor             the one lock: decides there, acts outside of it
    sessions, session   which agents are here, and what the regulator hears of them
    waiting, waiter     how a caller waits for its ticket, and what wakes it
    ticker, poller      what time brings, and how well the engine can be read
    events, recording_session    what watchers and recordings get

Nothing in here decides: the regulator does.
"""
