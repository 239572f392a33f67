"""Publishes weights from the training process and keeps the process alive that serves them."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from torch import nn

from lodestar import metrics
from lodestar.config import Endpoints, LearnerConfig, LearnerTask
from lodestar.errors import LodestarError
from lodestar.liveness import LOOK_SECONDS, SAID_SECONDS, Silence, look_at, waiting
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
        self._heard = threading.Event()
        """Set by every word of the server."""
        self._signs: Silence | None = None
        self._next_look = 0.0
        self._told = False

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
            line = self._first_line(server, server.stdout, task.hang_seconds)
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
        self._heard = threading.Event()
        self._signs = _silence_of(server.pid)
        self._listener = threading.Thread(target=self._listen, args=(server.stdout,), name="weights", daemon=True)
        self._listener.start()
        return port

    def _first_line(self, server: subprocess.Popen[str], said: IO[str], limit_seconds: float) -> str:
        """What a server says once it listens; empty when it died first, or was stopped for too long and killed."""
        signs = _silence_of(server.pid)
        with waiting():
            while not select.select([said], [], [], LOOK_SECONDS)[0]:
                look = look_at(server.pid)
                if signs and look and signs.see(look, alive=look.state != "stopped") >= limit_seconds:
                    log.warning("the weights server was stopped while it started; it is killed")
                    server.kill()
        return said.readline()

    def _start(self, told: LearnerTask) -> subprocess.Popen[str]:
        self.server = subprocess.Popen(
            [sys.executable, "-P", "-m", "lodestar_services.learner.weights_server"],
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
        """Starts the server process again when it has died or hangs; it finds what is announced on disk.

        To be called while the learner waits for rollouts: who could not fetch the weights makes none.
        """
        if self.server is None or self._task is None:
            return
        if self.server.poll() is None:
            if not self._hangs(self.server, self._task.hang_seconds):
                return
            self.server.kill()
            self.server.wait()
        log.warning("the weights server ended with exit code %s; starting it again", self.server.returncode)
        self.close()
        self.serve(self._task)  # its port is free

    def _hangs(self, server: subprocess.Popen[str], limit_seconds: float) -> bool:
        """Whether it has said nothing for so long, though it could have; the log says so before."""
        if time.monotonic() < self._next_look or self._signs is None or (look := look_at(server.pid)) is None:
            return False
        self._next_look = look.at + LOOK_SECONDS
        silent = self._signs.see(look, alive=self._heard.is_set())
        self._heard.clear()
        hangs = silent >= min(SAID_SECONDS, limit_seconds / 2)
        if hangs and not self._told:
            log.warning(
                "the weights server hangs (process %d is silent); after %g s it is started again",
                server.pid,
                limit_seconds,
            )
        self._told = hangs
        return silent >= limit_seconds

    def _listen(self, lines: IO[str]) -> None:
        """Reads the server's reports until it ends."""
        for line in lines:
            self._heard.set()
            told = json.loads(line)
            metrics.WEIGHT_BYTES_SENT.inc(told.get("sent", 0))
            announced = self._announced
            if announced is not None and told.get("digest") == announced.version.digest:
                self._followers = told["followers"]

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


def _silence_of(pid: int) -> Silence | None:
    look = look_at(pid)
    return None if look is None else Silence(look)
