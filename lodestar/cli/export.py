"""``lodestar export RUN``: a run's figures as files for other programs."""

from __future__ import annotations

from pathlib import Path

from lodestar.errors import LodestarError
from lodestar.files import replacing
from lodestar.notebook import figures

FORMATS = ("csv", "parquet")


def export(run: Path, output: Path | None, stage: str | None, formats: list[str]) -> list[Path]:
    """Writes figures.csv and figures.parquet; where they are.

    Args:
        output: folder; unset is the run's own, below ``export``.

    Raises:
        LodestarError: pandas, or for Parquet pyarrow, is not installed.
        DataError: there are no figures yet.
    """
    table = figures(run, stage)
    folder = output or run / "export"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        path = folder / f"figures.{name}"
        with replacing(path) as temporary:
            if name == "csv":
                table.to_csv(temporary, index=False)
            else:
                try:
                    table.to_parquet(temporary, index=False)
                except ImportError:
                    raise LodestarError("Parquet needs pyarrow: pip install 'lodestar-rlhf[frames]'") from None
        written.append(path)
    return written
