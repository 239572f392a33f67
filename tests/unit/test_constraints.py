"""constraints.txt pins everything that an installation of Lodestar brings, and nothing twice."""

import importlib.metadata as metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in pins}) == len(pins)
    return {canonicalize_name(name): version for name, version in pins}


def _needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    key = (canonicalize_name(name), extras)
    if key in seen:
        return
    seen.add(key)
    for text in metadata.distribution(name).requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
            _needed(requirement.name, frozenset(requirement.extras), seen)


def test_every_package_that_lodestar_installs_is_pinned_to_what_is_tested() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    _needed("lodestar-rlhf", frozenset({"dev"}), seen)
    needed = {name for name, _ in seen} - {"lodestar-rlhf"}
    pins = _pins()
    assert not needed - pins.keys(), "add these to constraints.txt"
    installed = {name: metadata.version(name).partition("+")[0] for name in needed}
    assert installed == {name: pins[name] for name in needed}
