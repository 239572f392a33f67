"""The fixed facts of the synthetic world: six animals and five dishes, known by heart or answered wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attribute = Literal["color", "home", "food"]


@dataclass(frozen=True, slots=True)
class Animal:
    """``Animal("fox", "red", "forest", "berries")``."""

    name: str
    color: str
    home: str
    food: str

    def value(self, attribute: Attribute) -> str:
        """The word that answers a question about the attribute."""
        return {"color": self.color, "home": self.home, "food": self.food}[attribute]


ANIMALS = (
    Animal("fox", "red", "forest", "berries"),
    Animal("owl", "brown", "tower", "mice"),
    Animal("bear", "black", "cave", "honey"),
    Animal("frog", "green", "pond", "flies"),
    Animal("cat", "orange", "barn", "cheese"),
    Animal("crab", "pink", "beach", "shrimp"),
)

DISHES: dict[str, tuple[str, str]] = {
    "pancakes": ("flour", "milk"),
    "salad": ("tomatoes", "olives"),
    "pie": ("apples", "sugar"),
    "stew": ("carrots", "onions"),
    "toast": ("butter", "jam"),
}
"""What each dish is made of."""

NAMES = ("mia", "tom", "ana", "leo", "zoe", "sam", "eva", "max")
"""Who asks."""

ANIMAL_OF = {animal.name: animal for animal in ANIMALS}

VALUES: dict[str, frozenset[str]] = {
    "color": frozenset(animal.color for animal in ANIMALS),
    "home": frozenset(animal.home for animal in ANIMALS),
    "food": frozenset(animal.food for animal in ANIMALS),
    "ingredient": frozenset(word for parts in DISHES.values() for word in parts),
}
"""Every possible answer of each kind; no word is in two of them."""
