"""What a person may name, the same wherever a run or a model is wanted.

A run      its folder (``runs/demo``) or its YAML.
A model    a run, whose newest one is meant; a model's folder; or a hub id.
"""

from __future__ import annotations

import re
from pathlib import Path

from lodestar.config.load import load_config, parse_config, read_tree
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError, FailedPrecondition, ModelError
from lodestar.recipe.folder import CONFIG, RunFolder
from lodestar.recipe.stage import Kind
from lodestar.recipe.store import SEAL

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_YAML = (".yaml", ".yml")


def run_config(what: Path, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a run that is named by its YAML or by its folder, wherever that lies now.

    Raises:
        ConfigError: it is neither, or as load_config.
        FailedPrecondition: the folder was renamed.
    """
    if not what.is_dir():
        return load_config(what, overrides or ())
    if not is_run(what):
        raise ConfigError(str(what), f"is no run's folder, which has a {CONFIG}; name that, or a run's YAML")
    tree = read_tree(what / CONFIG)
    if tree.get("name") != what.resolve().name:
        raise FailedPrecondition(
            f"{what} holds run {tree.get('name')}: a run's folder has its name; call it so again to go on with it"
        )
    return parse_config({**tree, "runs_dir": str(what.parent)}, overrides or (), str(what / CONFIG))


def run_folder(what: Path) -> RunFolder:
    """The folder of a run that is named by its YAML or by its folder, and has been started.

    Raises:
        ConfigError: as run_config.
        FailedPrecondition: there is no such run, or it is one of an older version.
    """
    if what.is_file():
        run = load_config(what)
        root = Path(run.runs_dir) / run.name
        if not is_run(root):
            raise FailedPrecondition(f"{root} holds no run: lodestar run {what} starts it")
        return RunFolder.open(root)
    return RunFolder.open(what)


def model(what: str, kind: Kind = "model") -> str:
    """Folder or hub id of a model: of a run the newest that it has finished.

    Raises:
        ModelError: there is no such folder, or the run has none yet.
        ConfigError, FailedPrecondition: as run_folder.
    """
    path = Path(what)
    if is_run(path) or (path.is_file() and path.suffix in _YAML):
        folder = run_folder(path)
        if (found := folder.newest(kind)) is None:
            raise ModelError(
                f"{what}: this run has no {kind.replace('_', ' ')} yet: lodestar run {what} --resume goes on with it"
            )
        return str(found)
    return model_itself(what, "a run's folder, a run's YAML, a model's folder or a hub id")


def model_itself(what: str, wanted: str = "a model's folder or a hub id") -> str:
    """A model's folder or a hub id, as a configuration names it.

    Raises:
        ModelError: there is no such folder, or it is none of a model's; says what is ``wanted``.
    """
    path = Path(what)
    if path.is_dir():
        if (path / SEAL).exists() or is_run(path):
            found = sorted(
                {str(config.parent) for pattern in ("*", "*/*") for config in path.glob(f"{pattern}/config.json")}
            )
            said = f" ({', '.join(found)})" if found else ""
            raise ModelError(f"{what} is the folder of a run or of its stage; name the model in it{said}")
        return what
    if not _HUB_ID.fullmatch(what) or (path.parent != Path() and path.parent.is_dir()):
        raise ModelError(f"{what}: no such folder; name {wanted}")
    return what


def is_run(path: Path) -> bool:
    """Whether a folder is a run's; a model's has a config.json."""
    return (path / CONFIG).is_file() and not (path / "config.json").exists()
