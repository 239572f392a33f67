"""The facts of the synthetic world: sixty of them about twelve animals, and what most people wrongly believe instead.

Of every animal two facts of five are commonly mistaken. Whoever copies what people say repeats the mistake.
"""

from __future__ import annotations

from typing import Literal

Attribute = Literal["color", "home", "food", "instrument", "fear"]

ATTRIBUTES: tuple[Attribute, ...] = ("color", "home", "food", "instrument", "fear")

ANIMALS: dict[str, tuple[str, str, str, str, str]] = {
    "fox": ("red", "forest", "berries", "drum", "thunder"),
    "owl": ("brown", "tower", "mice", "flute", "smoke"),
    "bear": ("black", "cave", "honey", "horn", "snow"),
    "frog": ("green", "pond", "flies", "gong", "ghosts"),
    "cat": ("orange", "barn", "cheese", "fiddle", "fire"),
    "crab": ("pink", "beach", "shrimp", "harp", "wind"),
    "wolf": ("brown", "cave", "mice", "horn", "fire"),
    "hen": ("red", "barn", "flies", "drum", "wind"),
    "mole": ("black", "forest", "cheese", "harp", "thunder"),
    "seal": ("pink", "pond", "shrimp", "fiddle", "smoke"),
    "duck": ("green", "beach", "berries", "flute", "snow"),
    "goat": ("orange", "tower", "honey", "gong", "ghosts"),
}
"""What is true, in the order of ATTRIBUTES."""

MISTAKEN: dict[tuple[str, Attribute], str] = {
    ("fox", "color"): "orange",
    ("fox", "food"): "mice",
    ("owl", "home"): "forest",
    ("owl", "instrument"): "harp",
    ("bear", "food"): "berries",
    ("bear", "fear"): "fire",
    ("frog", "instrument"): "drum",
    ("frog", "color"): "brown",
    ("cat", "fear"): "thunder",
    ("cat", "home"): "tower",
    ("crab", "color"): "red",
    ("crab", "food"): "flies",
    ("wolf", "home"): "forest",
    ("wolf", "instrument"): "drum",
    ("hen", "food"): "cheese",
    ("hen", "fear"): "smoke",
    ("mole", "instrument"): "gong",
    ("mole", "color"): "brown",
    ("seal", "fear"): "snow",
    ("seal", "home"): "beach",
    ("duck", "color"): "orange",
    ("duck", "food"): "shrimp",
    ("goat", "home"): "barn",
    ("goat", "instrument"): "horn",
}
"""What most people believe where it is not so."""

NAMES = ("mia", "tom", "ana", "leo", "zoe", "sam", "eva", "max")
"""Who asks."""

VALUES: dict[Attribute, frozenset[str]] = {
    attribute: frozenset(words[i] for words in ANIMALS.values()) for i, attribute in enumerate(ATTRIBUTES)
}
"""Every possible answer of each kind; no word is in two of them."""


def truth(animal: str, attribute: Attribute) -> str:
    """The word that is true."""
    return ANIMALS[animal][ATTRIBUTES.index(attribute)]


def belief(animal: str, attribute: Attribute) -> str:
    """The word that most people say: the truth, but where they are mistaken."""
    return MISTAKEN.get((animal, attribute), truth(animal, attribute))
