"""Frameworks: each adapter turns one framework's hooks into agents and steps.

Adapters make no decisions, and a framework is imported only when it is used. All adapters rest on
two context variables: the current agent, and the current step, of which inner steps are parts.
README.md shows how to add one.
"""
