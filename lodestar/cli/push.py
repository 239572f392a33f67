"""``lodestar push RUN REPOSITORY``: a run's model on a hub, with a card made from what the run measured."""

from __future__ import annotations

from pathlib import Path

from lodestar.errors import LodestarError, ModelError
from lodestar.recipe.folder import CONFIG, RunFolder
from lodestar.report.model_card import model_card

EXTRAS = {
    CONFIG: "lodestar/config.yaml",
    "summary.json": "lodestar/summary.json",
    "report.html": "lodestar/report.html",
}
"""Files of the run's folder → where they lie in the repository."""


def gathered(root: Path, artifact: str | None, *, repository: str, licence: str | None) -> dict[str, Path | bytes]:
    """What is pushed: path in the repository → file, or its content.

    Args:
        artifact: ``STAGE/PORT`` of a model or reward model; unset is the newest model.

    Raises:
        ModelError: the run has no such model yet.
    """
    folder = RunFolder.open(root)
    made = {f"{step.name}/{port}": kind for step in folder.done() for port, kind in step.makes.items()}
    models = [name for name, kind in made.items() if kind in ("model", "rival", "reward_model")]
    newest = next((name for name in reversed(models) if made[name] == "model"), None)
    chosen = artifact or newest
    if chosen is None or chosen not in models:
        there = f"it has {', '.join(models)}" if models else "it has none yet; lodestar run … --resume goes on with it"
        raise ModelError(f"{root}: no model {artifact or ''} is finished; {there}")
    place = folder.store.path(chosen)
    files: dict[str, Path | bytes] = {
        str(path.relative_to(place)): path
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != "README.md"
    }
    files |= {there: root / here for here, there in EXTRAS.items() if (root / here).exists()}
    files["README.md"] = model_card(folder, chosen, repository=repository, licence=licence).encode()
    return files


def push(repository: str, files: dict[str, Path | bytes], *, private: bool, message: str) -> str:
    """Creates the repository where it is missing, and sends everything in one commit; its address.

    Raises:
        LodestarError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=one) for name, one in files.items()]
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise LodestarError(f"{repository}: the hub did not take it: {said[0] if said else error!r}") from None


def listed(files: dict[str, Path | bytes]) -> str:
    """Every file with its size and place, and the card."""
    sizes = {name: one.stat().st_size if isinstance(one, Path) else len(one) for name, one in files.items()}
    rows = [f"{sizes[name]:>13,}  {name}{f'  ({one})' if isinstance(one, Path) else ''}" for name, one in files.items()]
    card = files["README.md"]
    assert isinstance(card, bytes)
    return "\n".join([*rows, f"{sum(sizes.values()):>13,}  bytes in all", "", "README.md:", card.decode()])
