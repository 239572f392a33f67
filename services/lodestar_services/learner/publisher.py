"""Publishes weights from the training process and keeps the process alive that serves them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from torch import nn

from lodestar import metrics
from lodestar.config import Endpoints, LearnerConfig, LearnerTask
from lodestar.errors import LodestarError
from lodestar.model.weights import named_tensors
from lodestar.records import ModelInfo, Scored, WeightManifest
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.publication import Publication
from lodestar_services.learner.probes import probes_of

log = logging.getLogger(__name__)

STARTS = 5
"""How often a weights server that is killed while it starts is started again."""


class WeightPublisher:
    """Writes each version below the run's folder; a process of its own streams it, so that training never waits.

    The server process reads this process's pipe: it hears of announcements there, and when the pipe closes, however
    the learner ended, it ends too and frees its port. It tells what it sent, and what the followers make of a version.
    """

    def __init__(
        self,
        root: Path,
        *,
        run: str,
        incarnation: str,
        tokenizer_hash: str,
        section: LearnerConfig,
        probed: Sequence[Scored] = (),
    ) -> None:
        """``probed`` are the tokens of the parity probe: every version comes with the model's log-probs of them."""
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*.partial"):  # of a start that was killed
            shutil.rmtree(leftover)
        directory = WeightDirectory(root)
        directory.retract()
        self._run = run
        self._tokenizer_hash = tokenizer_hash
        self._publication = Publication(
            directory,
            run=run,
            incarnation=incarnation,
            tokenizer_hash=tokenizer_hash,
            keep=section.weight_versions,
            deltas=section.weight_deltas,
            full_every=section.full_weights_every,
        )
        self._probed = probed
        self._announced: WeightManifest | None = None
        self._followers: Mapping[str, str | None] = {}
        """Who follows, and why it refuses what is announced; None: it has not said."""
        self.server: subprocess.Popen[str] | None = None
        """The process that serves."""
        self._task: LearnerTask | None = None
        self._listener: threading.Thread | None = None

    def serve(self, task: LearnerTask) -> int:
        """Starts the server process as the learner itself was told to serve, on ``weights_port``; returns its port.

        Raises:
            LodestarError: it did not start, with its last words.
        """
        listening = task.listening
        ours = listening.model_copy(update={"port": listening.weights_port})
        told = task.model_copy(update={"listening": ours, "endpoints": Endpoints()})
        for _ in range(STARTS):
            server = self._start(told)
            assert server.stdout is not None
            line = server.stdout.readline()
            if line:
                break
            code = server.wait()
            self.close()
            if code >= 0:  # it ended by itself, and would again
                break
            log.warning("the weights server was killed by signal %d while it started; starting it again", -code)
        if not line:
            raise LodestarError(
                f"the weights server on {listening.host}:{listening.weights_port} did not start "
                f"(exit {code}); its error is in this log"
            )
        port = int(json.loads(line)["port"])
        at = listening.model_copy(update={"weights_port": port})
        self._task = task.model_copy(update={"listening": at})
        self._listener = threading.Thread(target=self._listen, args=(server.stdout,), name="weights", daemon=True)
        self._listener.start()
        return port

    def _start(self, told: LearnerTask) -> subprocess.Popen[str]:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "lodestar_services.learner.weights_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with contextlib.suppress(BrokenPipeError):  # it died just now, which its missing answer says
            self._say(told.model_dump_json())
        return self.server

    def publish(self, model: nn.Module, step: int, *, full: bool = False) -> WeightManifest:
        """Writes and announces the model's weights as the version of ``step``; ``full``: whole, whatever was due.

        Raises:
            NonFinite: the model's log-probs of the probe are no numbers.
        """
        probes = probes_of(model, self._probed)
        manifest = self._publication.publish(named_tensors(model), step, probes=probes, full=full)
        self._announced, self._followers = manifest, {}
        metrics.WEIGHT_STEP.set(step)
        self._notify()
        return manifest

    @property
    def refusals(self) -> Mapping[str, str]:
        """Why each follower refuses the version announced last, if all that follow do; else empty."""
        followers = self._followers
        refusals = {name: said for name, said in followers.items() if said}
        return refusals if len(refusals) == len(followers) else {}

    def model_info(self, manifest: WeightManifest) -> ModelInfo:
        """The published policy as replies name it."""
        return ModelInfo(self._run, manifest.version, self._tokenizer_hash)

    def keep_serving(self) -> None:
        """Starts the server process again when it has died; it finds what is announced on disk.

        To be called while the learner waits for rollouts: who could not fetch the weights makes none.
        """
        if self.server is None or self._task is None or self.server.poll() is None:
            return
        log.warning("the weights server ended with exit code %s; starting it again", self.server.returncode)
        self.close()
        self.serve(self._task)  # its port is free

    def _notify(self) -> None:
        self.keep_serving()
        if self.server is not None:
            with contextlib.suppress(BrokenPipeError):  # it died just now: its successor needs no telling
                self._say("announced")

    def _say(self, line: str) -> None:
        assert self.server is not None
        assert self.server.stdin is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()

    def close(self) -> None:
        """Ends the server process."""
        if self.server is None:
            return
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died: what was not read yet needs no reader
            self.server.stdin.close()
        self.server.wait(timeout=10)
        if self._listener is not None:
            self._listener.join(timeout=10)
        self.server.stdout.close()
        self.server, self._listener = None, None

    def _listen(self, lines: IO[str]) -> None:
        """Reads the server's reports until it ends."""
        for line in lines:
            told = json.loads(line)
            metrics.WEIGHT_BYTES_SENT.inc(told.get("sent", 0))
            announced = self._announced
            if announced is not None and told.get("digest") == announced.version.digest:
                self._followers = told["followers"]
