"""Publishes weights from the training process and keeps the process alive that serves them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import nn

from lodestar import metrics
from lodestar.errors import LodestarError
from lodestar.model.weights import named_tensors
from lodestar.records import ModelInfo, WeightManifest
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.tensors import publish


class WeightPublisher:
    """Writes each version below the run's folder; a process of its own streams it, so that training never waits.

    The server process reads this process's pipe: it hears of announcements there, and when the pipe closes, however
    the learner ended, it ends too and frees its port.
    """

    def __init__(self, root: Path, *, run: str, incarnation: str, tokenizer_hash: str, keep: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._directory = WeightDirectory(root)
        self._directory.retract()
        self._run = run
        self._incarnation = incarnation
        self._tokenizer_hash = tokenizer_hash
        self._keep = keep
        self.server: subprocess.Popen[str] | None = None
        """The process that serves; it is started again when it dies."""
        self._command: list[str] = []

    def serve(self, host: str, port: int) -> int:
        """Starts the server process and returns its port.

        Raises:
            LodestarError: it did not start, with its last words.
        """
        module = "lodestar_services.learner.weights_server"
        self._command = [sys.executable, "-m", module, str(self._directory.root), self._run, host, str(port)]
        self.server = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line:
            raise LodestarError(
                f"the weights server on {host}:{port} did not start (exit {self.server.wait()}); "
                "its error is in this log"
            )
        self._command[-1] = line.strip()
        return int(line)

    def publish(self, model: nn.Module, step: int) -> WeightManifest:
        """Writes and announces the model's weights as the version of ``step``."""
        manifest = publish(
            self._directory,
            named_tensors(model),
            run=self._run,
            incarnation=self._incarnation,
            step=step,
            tokenizer_hash=self._tokenizer_hash,
            keep=self._keep,
        )
        metrics.WEIGHT_STEP.set(step)
        self._notify()
        return manifest

    def model_info(self, manifest: WeightManifest) -> ModelInfo:
        """The published policy as replies name it."""
        return ModelInfo(self._run, manifest.version, self._tokenizer_hash)

    def _notify(self) -> None:
        if self.server is None:
            return
        if self.server.poll() is not None:  # it died: its port is free, start it again
            self.close()
            self.serve(self._command[-2], int(self._command[-1]))
        assert self.server.stdin is not None
        self.server.stdin.write("announced\n")
        self.server.stdin.flush()

    def close(self) -> None:
        """Ends the server process."""
        if self.server is not None:
            self.server.communicate(timeout=10)  # closes its pipes
            self.server = None
