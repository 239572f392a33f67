"""The rollout queue: a port (port.py) and its adapters (redis/ for runs, memory.py for tests and notebooks)."""
