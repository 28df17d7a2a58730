"""The bench that judges every law: scenarios in files, references found by search, goals.

It runs laws in the simulator, in virtual time, and knows nothing of hosts or real endpoints.
"""
