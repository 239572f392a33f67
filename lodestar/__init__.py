"""Lodestar: RLHF as a set of services."""

__version__ = "0.1.0"
