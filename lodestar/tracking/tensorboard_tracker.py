"""TensorBoard: event files by its own writer; ``tensorboard --logdir runs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

DT_STRING = 7
"""Of TensorFlow's types.proto."""


class TensorBoard:
    """See Tracker. Files are shown as their places: TensorBoard keeps none."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def figures(self, stage: str, step: int, time: float, values: Mapping[str, float]) -> None:
        """Scalars."""
        rows = [Summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time, step=step, summary=Summary(value=rows)))
        self._writer.flush()

    def text(self, name: str, markdown: str) -> None:
        """A text of its own."""
        about = SummaryMetadata.FromString(create_summary_metadata(name, "").SerializeToString())
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
        value = Summary.Value(tag=name, metadata=about, tensor=tensor)
        self._writer.add_event(Event(step=0, summary=Summary(value=[value])))

    def options(self, values: Mapping[str, Any]) -> None:
        """As a text."""
        self.text("config", f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False)}```")

    def file(self, path: Path) -> None:
        """Its place as a text."""
        self.text(f"files/{path.name}", f"`{path}`")

    def close(self) -> None:
        """Writes what is held."""
        self._writer.close()


def make(folder: Path, run: str, run_id: str) -> TensorBoard:
    """A new event file in the folder; TensorBoard reads all of them as one run."""
    return TensorBoard(folder)
