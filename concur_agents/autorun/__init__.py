"""The part of `concur run` inside the program, which it governs without a change to its code.

`_bootstrap/sitecustomize.py` runs when Python starts and installs the hooks of `hooks.py`, which
govern openai and LangGraph when the program imports them. `implicit.py` takes tasks and threads for
agents.
"""
