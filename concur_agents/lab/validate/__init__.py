"""The simulated engine beside measurements of real ones."""
