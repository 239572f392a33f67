"""The feedback service as a process, and a person at its page."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx

from lodestar.config.serve import FeedbackTask
from lodestar.feedback import AsyncFeedbackClient
from lodestar.rpc.channel import serving
from lodestar.rpc.state import ServiceState

START = """
import sys
from lodestar.config.serve import FeedbackTask
from lodestar_services.feedback.__main__ import main
sys.exit(main(FeedbackTask.model_validate_json(sys.argv[1])))
"""


def task(folder: Path, *, listening: dict[str, Any] | None = None, **section: Any) -> FeedbackTask:
    """On loopback."""
    told = {"run": "p", "folder": folder, "section": section, "listening": listening or {}}
    return FeedbackTask.model_validate(told)


class Running:
    """One process of the service, which can be killed and started again on its ports."""

    def __init__(self, folder: Path, *, listening: dict[str, Any] | None = None, **section: Any) -> None:
        self.folder = folder
        self.listening = listening or {}
        self.section = section
        self.start()

    def start(self) -> None:
        state = self.folder / "services" / "feedback-0.json"
        state.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            argument = task(self.folder, listening=self.listening, **self.section).model_dump_json()
            self.process = subprocess.Popen([sys.executable, "-c", START, argument], stderr=log, stdout=log)
        deadline = time.monotonic() + 60
        while not (state.exists() and self._serving(ServiceState.read(state))):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        self.address = ServiceState.read(state).address
        self.link = json.loads((self.folder / "page.json").read_text())["link"]
        self.caller_address = f"127.0.0.1:{ServiceState.read(state).caller_port}"
        self.listening = {**self.listening, "port": int(self.address.rpartition(":")[2])}

    def _serving(self, state: ServiceState) -> bool:
        return serving(state.address if state.health_port is None else f"127.0.0.1:{state.health_port}")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def client(self) -> AsyncFeedbackClient:
        return AsyncFeedbackClient(self.address, timeout=20)


Join = Callable[[str], httpx.Client]


def answer(client: httpx.Client, campaign: str, choice: str) -> httpx.Response:
    html = client.get(f"/c/{campaign}").text
    hidden = dict(
        part.split('" value="')
        for part in (one.split('">')[0] for one in html.split('<input type="hidden" name="')[1:])
    )
    return client.post(f"/c/{campaign}", data=hidden | {"do": "send", "choice": choice})
