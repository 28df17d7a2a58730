"""What turns the pure regulator into something threads and event loops can stand in front of.

    agent, step     the handles that users hold
    desk            the one lock: decides there, acts outside of it
    roster, place   who is here, where each stands, and what the regulator is told of it
    waiter          who sleeps where, and how to wake him
    pulse, reader   what time brings, and how well the engine can be read
    events, tape    what is told to those who watch, and what is recorded

Nothing in here decides: the regulator does.
"""
