"""The small file by which a service process tells the launcher where it listens."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from lodestar.files import write_atomically


@dataclass(frozen=True, slots=True)
class ServiceState:
    """``ServiceState("policy-0", 4711, "127.0.0.1", 50051, 9101)``: written once the ports are bound."""

    name: str
    """Role and replica."""
    pid: int
    host: str
    port: int
    metrics_port: int | None
    """None where a process exports nothing."""
    caller_port: int | None = None
    health_port: int | None = None
    http_port: int | None = None

    @property
    def address(self) -> str:
        """gRPC target."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def write(self, folder: Path) -> Path:
        """Writes ``folder/NAME.json`` so that a reader sees all of it or none."""
        path = folder / f"{self.name}.json"
        write_atomically(path, json.dumps(dataclasses.asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> ServiceState:
        """The state in one file; raises FileNotFoundError while the service has not bound its ports."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
