"""The keys of a batch: each item has a name, and the same item twice has two.

    "t1", "t1", "t2", "t1"  ->  "t1", "t1#2", "t2", "t1#3"

The name of the k-th sample of an item depends on the items before it alone, so a run that was
interrupted finds each sample in its journal again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any
from uuid import UUID

from concur_agents.errors import ConfigError

_NATURAL_KEYS = ("key", "id", "instance_id")

_LASTING = str | int | UUID | PurePath
"""Types of names that are the same in each run."""


class Keys:
    """Names items, and numbers those that have the same name.

    Args:
        key: names an item; None: strings, ints, UUIDs and paths name themselves, and other items
            are named by their `key`, `id` or `instance_id`.
        are_kept: the names must be the same in the next run, so none is made up.
    """

    def __init__(self, key: Callable[[Any], object] | None, *, are_kept: bool) -> None:
        self._key = key
        self._are_kept = are_kept
        self._seen: dict[str, int] = {}
        self._made_up = 0

    def of(self, item: Any) -> str:
        """A name for an item that no item before it has.

        Raises:
            ConfigError: `key` returns no string; or the item has no name and needs one.
        """
        return self.unique(self._name(item))

    def unique(self, name: str) -> str:
        """`name`; or, if it is taken, `name#2`, `name#3`, ..."""
        seen = self._seen
        count = seen[name] = seen.get(name, 0) + 1
        if count == 1:
            return name
        while (numbered := f"{name}#{count}") in seen:  # an item may be called "t1#2" itself
            count += 1
        seen[name] = count
        seen[numbered] = 1
        return numbered

    def _name(self, item: Any) -> str:
        if self._key is not None:
            given = self._key(item)
            if not isinstance(given, _LASTING):
                raise ConfigError(
                    f"key must return a string, an int, a UUID or a path, got {given!r:.100} for "
                    f"{item!r:.100}"
                )
            return str(given)
        if isinstance(item, _LASTING) and not isinstance(item, bool):
            return str(item)
        for attribute in _NATURAL_KEYS:
            value = (
                item.get(attribute) if isinstance(item, dict) else getattr(item, attribute, None)
            )
            if isinstance(value, _LASTING) and not isinstance(value, bool):
                return str(value)
        if self._are_kept:
            raise ConfigError(
                f"the journal needs a key for {item!r:.100}, to find its result in the next run: "
                "give AgentPool a key, such as key=lambda item: item.url"
            )
        self._made_up += 1
        return f"item-{self._made_up}"  # not "agent-1": so the governor calls its nameless agents
