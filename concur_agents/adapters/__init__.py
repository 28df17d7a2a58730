"""Frameworks: each adapter translates one framework's hook into agents and steps.

No policy lives here, and nothing of a framework is imported before somebody uses it. Under all of
them is one mechanism: the current agent in a context variable, and one gate at the boundary that
may be asked any number of times.
"""
