"""Model folders before anything is loaded from them: what is missing is said in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lodestar.errors import ModelError
from lodestar.model.quiet import quiet_transformers


def read_config(path: str | Path) -> Any:
    """The configuration of a local folder or hub id.

    Raises:
        ModelError: there is none that can be read.
    """
    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path}: cannot be loaded: {reason}") from error


def check_folder(path: Path) -> None:
    """Refuse a local folder that from_pretrained would explain badly; hub ids pass.

    Raises:
        ModelError: no folder, no config.json, or no safetensors there; an adapter without its model.
    """
    if not path.exists():
        inside = path.parent != Path() and path.parent.is_dir()
        if path.is_absolute() or len(path.parts) > 2 or str(path).startswith((".", "~")) or inside:
            raise ModelError(f"{path}: no such model folder")
        return
    adapter = (path / "adapter_config.json").is_file()
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path}: holds a LoRA adapter and not its model; merge them (PEFT's merge_and_unload) and save the "
            "result, or put the adapter's files into the model's folder"
            if adapter
            else f"{path}: no config.json there; a Hugging Face model folder is needed"
        )
    weights = [file for file in path.glob("*.safetensors") if not file.name.startswith("adapter_")]
    if not weights:
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        raise ModelError(
            f"{path}: no safetensors there"
            + ("; pickled weights are not read, convert them with save_pretrained(safe_serialization=True)" * pickled)
        )
