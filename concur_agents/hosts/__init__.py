"""What turns the pure regulator into something threads and event loops can stand in front of.

Here live the waiters (who sleeps where, and how to wake him), the agent handles, the reading of
usage objects and the delivery of events. Nothing in here decides: the regulator does.
"""
