"""`python -m concur_agents.daemon`: started by `shared="auto"`, with its options as JSON on stdin.

It returns when the daemon listens, and the daemon goes on in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from concur_agents.core import make_law
from concur_agents.daemon.locks import locked_urls, take_locks
from concur_agents.daemon.server import Daemon, listen, log_to_stderr
from concur_agents.errors import ConcurError
from concur_agents.governor import Governor
from concur_agents.runtime.daemon_address import daemon_address
from concur_agents.wire.hub import SETTLE_S

IDLE_S = 30.0
"""It ends so long after its last client [s]."""


def main() -> None:
    """Runs the daemon."""
    options: dict[str, Any] = json.load(sys.stdin)
    try:
        address = daemon_address(options.pop("listen"))
        law = options["law"]
        if isinstance(law, dict):
            options["law"] = make_law(law["name"], **law["options"])
        locks = take_locks(locked_urls(options["url"], options.get("pools")), str(address))
        Governor(**options).close()  # wrong options are to be reported before the fork
        listener, is_successor = listen(address, None)
    except (ConcurError, ValueError, TypeError) as error:
        sys.exit(str(error))
    if os.fork():
        os._exit(0)
    assert address.path is not None
    log = os.open(address.path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    log_to_stderr()
    with contextlib.closing(Governor(**options, socket="auto")) as governor:
        settle_s = SETTLE_S if is_successor else 0.0
        daemon = Daemon(governor, settle_s=settle_s, idle_s=IDLE_S)
        asyncio.run(daemon.serve([(listener, address)]))
    for lock in locks:
        lock.close()


if __name__ == "__main__":
    main()
