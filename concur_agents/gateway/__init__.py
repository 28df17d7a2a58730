"""The gateway: an address in front of engines, for agents that are not Python or sit elsewhere.

It speaks what the engine speaks, because it passes requests and answers on as they are, and holds
each call until its agent may run. `identity.py` says which agent makes a request, `holding.py` how
long a request may be held and what its client gets meanwhile, `retries.py` which requests are one
call, `idle.py` when an agent that is silent has ended; these four are pure. `agents.py` keeps the
agents, `engines.py` says where a call goes, `flight.py` is one call; `proxy.py` takes requests,
`sending.py` sends them on, `relay.py` brings back the answers, and `app.py` listens.

It has no policy: every decision is the governor's.
"""
