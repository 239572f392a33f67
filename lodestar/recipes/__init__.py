"""Recipes that ship: YAML files of stages, which a run names by ``recipe:``."""
