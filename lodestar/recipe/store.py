"""A run's artifacts on disk, and the seals that say what was asked of a stage, what it took and what it made.

    runs/NAME/
      config.yaml          the run as it was last started, every option written out
      STAGE/seal.json      stands there once the stage is done
      STAGE/PORT           an artifact: a file or a folder
      STAGE/unfinished/    what a stage that is not done has so far; its outputs become artifacts when it is sealed
      STAGE/kept/          what a stage that is done could go on from, were more asked of it (Stage.grows)

Sealing writes ``unfinished/seal.json`` first, moves the outputs out and then the seal itself: whoever is killed between
two of these, the next start goes on with it (:meth:`Store.recover`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.config.run import RunConfig
from lodestar.errors import DataError, ResumeRefused
from lodestar.files import digest, read_json, remove, remove_leftovers, replacing, sync, write_atomically
from lodestar.recipe.plan import GIVEN, Step, given_artifacts

FORMAT = 1
"""Of seals; a folder of another one is refused."""
SEAL = "seal.json"
KEPT = "kept"
_PLACES = ("device", "path")
"""Of the model section: where it happens; the given model is an input with a digest."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was asked of a stage otherwise: ``Change("ppo.clip", 0.2, 0.3)``."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} (was {self.was!r}, is {self.now!r})"


class Store:
    """The folder of one run."""

    def __init__(self, root: Path, run: RunConfig) -> None:
        self.root = root
        self.run = run
        self._given: dict[str, str] = {str(kind): path for kind, path in given_artifacts(run).items()}

    def path(self, artifact: str) -> Path:
        """Where an artifact lies: of a stage that is not done, below its ``unfinished``."""
        name, _, port = artifact.partition("/")
        if name == GIVEN:
            return Path(self._given[port])
        if self._sealed(name):
            return self.root / name / port
        return self.root / name / "unfinished" / port

    def unfinished(self, step: Step) -> Path:
        """Where a stage keeps what must survive a kill."""
        return self.root / step.name / "unfinished"

    def asked(self, step: Step) -> dict[str, Any]:
        """All that decides what a stage makes and is known before anything runs."""
        run = self.run
        model = {key: value for key, value in run.model.model_dump(mode="json").items() if key not in _PLACES}
        unasked: Any = {"use": True, **step.stage.manner}
        asked = {
            "stage": step.kind,
            "options": step.stage.model_dump(mode="json", exclude=unasked),
            "inputs": {port: list(artifacts) for port, artifacts in step.inputs.items()},
            "seed": run.seed,
            "deterministic": run.deterministic,
            "model": model,
        }
        if any(call.role == "reward" for call in step.stage.calls.values()):
            asked["sources"] = [source.model_dump(mode="json") for source in step.stage.sources(run)]
        return asked

    def took(self, step: Step) -> dict[str, list[str]]:
        """Digests of what it takes, by port; what made them is sealed by then."""
        return {port: [self.digest(artifact) for artifact in artifacts] for port, artifacts in step.inputs.items()}

    def digest(self, artifact: str) -> str:
        """Of an artifact of a sealed stage, as its seal says; of the given model, of its files or its hub id."""
        name, _, port = artifact.partition("/")
        if name == GIVEN:
            path = self.path(artifact)
            return digest(path) if path.exists() else f"hub:{path}"
        return str(self.seal_of(name)["made"][port])

    def changes(self, step: Step) -> list[Change]:
        """How a stage that is done, or under way, was asked otherwise than now; none for one that has not begun.

        A stage that makes figures alone and would now take other artifacts is not changed but out of date.
        """
        seal = self.seal_of(step.name)
        begun = self.unfinished(step) / "asked.json"
        before = seal.get("asked") or (read_json(begun) if begun.exists() else None)
        if before is None:
            return []
        now = self.asked(step)
        if step.only_figures:
            before, now = ({**asked, "inputs": None} for asked in (before, now))
        found = _differences(before, now)
        if not seal or self._kept(step).exists():
            found = [one for one in found if not (one[0] == step.stage.grows and one[2] > one[1])]
        return [Change(f"{step.name}.{key}", was, new) for key, was, new in found]

    def grows(self, step: Step) -> tuple[int, int] | None:
        """From what to what a finished stage would go on, where more is asked of it and nothing else has changed."""
        seal = self.seal_of(step.name)
        if not seal or not step.stage.grows or self.changes(step) or seal["took"] != self.took(step):
            return None
        was, now = (asked["options"][step.stage.grows] for asked in (seal["asked"], self.asked(step)))
        return (was, now) if now > was else None

    def reopen(self, step: Step) -> None:
        """Makes a finished stage an unfinished one that goes on from what it kept. A kill leaves one or the other."""
        folder, seal = self.root / step.name, self.seal_of(step.name)
        with replacing(self.unfinished(step)) as partial:
            shutil.copytree(self._kept(step), partial, copy_function=os.link)  # written once, and never again
            for port, kind in step.makes.items():
                if kind == "figures":
                    shutil.copytree(folder / port, partial / port)
            (partial / "seconds.json").write_text(json.dumps({"seconds": seal["seconds"]}), encoding="utf-8")
        (folder / SEAL).unlink()
        sync(folder)
        for path in (self._kept(step), *(folder / port for port in step.makes)):
            remove(path)

    def done(self, step: Step) -> bool:
        """Whether it need not run: the same was asked of it, and it took the same."""
        seal = self.seal_of(step.name)
        if not seal or seal["asked"] != self.asked(step):
            return False
        sources = {a.partition("/")[0] for artifacts in step.inputs.values() for a in artifacts} - {GIVEN}
        return all(self._sealed(name) for name in sources) and seal["took"] == self.took(step)

    def begin(self, step: Step) -> None:
        """Notes what is asked of a stage that starts, or goes on."""
        write_atomically(self.unfinished(step) / "asked.json", json.dumps(self.asked(step), indent=1))

    def seal(self, step: Step, figures: Mapping[str, Any]) -> None:
        """Makes a stage's outputs artifacts. ``figures``: what the conductor knows of how it went.

        Raises:
            DataError: an output is missing; the stage has a defect.
        """
        folder = self.unfinished(step)
        for port in step.makes:  # a stage that was killed and started again may have left some in its outputs
            remove_leftovers(folder / port, below=True)
        seal = {
            "format": FORMAT,
            "asked": self.asked(step),
            "took": self.took(step),
            "made": {port: digest(folder / port) for port in step.makes},
            "keeps": [name for name in step.stage.keeps if (folder / name).exists()],
            **figures,
        }
        write_atomically(folder / SEAL, json.dumps(seal, indent=1))
        self._finish(step.name, seal)

    def recover(self, steps: Iterable[Step]) -> None:
        """Ends what a killed conductor had begun to seal, and sweeps temporary names."""
        for step in steps:
            folder = self.root / step.name
            if (folder / "unfinished" / SEAL).exists():
                self._finish(step.name, read_json(folder / "unfinished" / SEAL))
            elif self._sealed(step.name) and (folder / "unfinished").exists():
                remove(folder / "unfinished")
            for place in (folder, folder / "unfinished"):
                remove_leftovers(place)

    def clear(self, step: Step) -> None:
        """Forgets a stage: its seal first."""
        (self.root / step.name / SEAL).unlink(missing_ok=True)
        if (self.root / step.name).exists():
            remove(self.root / step.name)

    def seal_of(self, name: str) -> dict[str, Any]:
        """A stage's seal; empty while it is not done.

        Raises:
            ResumeRefused: it is damaged, or of another version of Lodestar.
        """
        path = self.root / name / SEAL
        if not path.exists():
            return {}
        try:
            seal = read_json(path)
        except DataError as error:
            raise ResumeRefused(f"{error}: damaged; --from {name} makes that stage anew") from None
        if seal.get("format") != FORMAT:
            raise ResumeRefused(
                f"{path} is of format {seal.get('format')}, this version writes {FORMAT}; finish the run with the "
                f"version that began it, or --from {name}"
            )
        return seal

    def spend(self, step: Step, seconds: float) -> float:
        """Adds to the seconds that a stage has taken over all starts; their sum."""
        path = self.unfinished(step) / "seconds.json"
        spent = round(seconds + (read_json(path)["seconds"] if path.exists() else 0.0), 3)
        write_atomically(path, json.dumps({"seconds": spent}))
        return spent

    def check_seals(self, steps: Iterable[Step]) -> None:
        """Compares every sealed stage's files with its seal.

        Raises:
            ResumeRefused: names each file or folder that is damaged or was edited by hand.
        """
        damaged: list[tuple[str, Path]] = []
        for step in steps:
            for port, expected in self.seal_of(step.name).get("made", {}).items():
                path = self.root / step.name / port
                if not path.exists() or digest(path) != expected:
                    damaged.append((step.name, path))
        if damaged:
            said = ", ".join(f"{path} ({'is missing' if not path.exists() else 'changed'})" for _, path in damaged)
            raise ResumeRefused(
                f"damaged, or edited by hand, since it was sealed: {said}; put it back, or --from {damaged[0][0]} "
                "makes it anew"
            )

    def _sealed(self, name: str) -> bool:
        return (self.root / name / SEAL).exists()

    def _kept(self, step: Step) -> Path:
        return self.root / step.name / KEPT

    def _finish(self, name: str, seal: Mapping[str, Any]) -> None:
        folder = self.root / name
        places = {port: folder / port for port in seal["made"]}
        places |= {kept: folder / KEPT / kept for kept in seal.get("keeps", ())}
        for written, place in places.items():
            made = folder / "unfinished" / written
            if made.exists():
                if place.exists():
                    remove(place)
                place.parent.mkdir(exist_ok=True)
                made.rename(place)
        sync(folder)
        (folder / "unfinished" / SEAL).rename(folder / SEAL)
        sync(folder)
        shutil.rmtree(folder / "unfinished", ignore_errors=True)


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ; ``options.`` is left out of them."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for name in dict.fromkeys((*before, *now)):
            below = key if name == "options" and not key else f"{key}.{name}".lstrip(".")
            found += _differences(before.get(name), now.get(name), below)
        return found
    return [] if before == now else [(key or "options", before, now)]
