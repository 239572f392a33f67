"""Lodestar: RLHF as a set of services. Five calls for a notebook, each loaded when it is first used:

import lodestar
lodestar.plan("mine.yaml")                                      # the stages, tied together and checked
lodestar.run("mine.yaml", "ppo.steps=20")                       # conducted in this process; the run's folder
lodestar.figures("runs/mine")                                   # what its stages wrote, as a pandas DataFrame
lodestar.generate("runs/mine", "what color is the sky ?", n=4)  # texts of its newest model
lodestar.score("runs/mine", [("what color is the sky ?", "blue")])  # by its newest reward model
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lodestar.notebook import figures, generate, plan, run, score

__version__ = "0.1.0"
__all__ = ["__version__", "figures", "generate", "plan", "run", "score"]


def __getattr__(name: str) -> Any:
    """Of the calls above: ``import lodestar`` loads neither torch nor anything else."""
    if name in __all__:
        from lodestar import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'lodestar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
