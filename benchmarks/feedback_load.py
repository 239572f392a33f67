"""The page under load: 50 people at once over HTTP, 10,000 judgements, the process killed five times in between.

    python benchmarks/feedback_load.py --database sqlite postgresql

The synthetic world's annotators read the page, choose by their own liking and wait about a second, as somebody very
fast would; a request that fails because the process is gone is sent again until it is answered. At the end the database
must hold every answer that was acknowledged, once, and every item as often as it was asked for. Times are of all
requests that were answered, seen from the client, on the same two cores; connections refused while the process is away
are counted apart. CPU ms are the service's own per request, which other load on the machine hardly spoils. PostgreSQL
is a cluster of the benchmark's own (Debian's package).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import psutil
import sqlalchemy as sa
from harness import parser, report
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.tables import answers, items

from lodestar.config import FeedbackConfig, FeedbackTask, Listening
from lodestar.data.world import PANEL, Annotator, every_request, write
from lodestar.data.world.replies import DEMONSTRATION_MIX, WRITERS
from lodestar.feedback import AsyncFeedbackClient, Campaign, Item
from lodestar.rpc.channel import serving
from lodestar.rpc.state import ServiceState

START = """
import sys
from lodestar.config.serve import FeedbackTask
from lodestar_services.feedback.__main__ import main
sys.exit(main(FeedbackTask.model_validate_json(sys.argv[1])))
"""
CAMPAIGN = Campaign(name="load", form="pair", overlap=2, strength=False)


@dataclass
class Seen:
    """By all annotators."""

    seconds: list[float] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    refused: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


class Browser:
    """A person's connection: HTTP/1.1 with keep-alive, as little client as there can be on the machine under test."""

    def __init__(self, link: str, seen: Seen) -> None:
        self._host, _, port = link.removeprefix("http://").partition(":")
        self._port = int(port)
        self._seen = seen
        self._cookie = ""
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, path: str, fields: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Status, location and body; tried again while the process is away."""
        while True:
            started = time.perf_counter()
            try:
                answer = await self._once(path, fields)
            except (OSError, asyncio.IncompleteReadError):
                self._pipe = None
                self._seen.refused += 1
                await asyncio.sleep(0.25)
                continue
            self._seen.seconds.append(time.perf_counter() - started)
            self._seen.statuses[answer[0]] += 1
            if answer[0] == 503:
                await asyncio.sleep(0.5)
                continue
            return answer

    async def _once(self, path: str, fields: Mapping[str, str] | None) -> tuple[int, str, str]:
        if self._pipe is None:
            self._pipe = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._pipe
        body = "&".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in (fields or {}).items()).encode()
        head = [f"{'GET' if fields is None else 'POST'} {path} HTTP/1.1", f"host: {self._host}"]
        if self._cookie:
            head.append(f"cookie: {self._cookie}")
        if fields is not None:
            head += ["content-type: application/x-www-form-urlencoded", f"content-length: {len(body)}"]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        raw = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(raw.split(" ", 2)[1])
        headers = dict(line.split(": ", 1) for line in raw.lower().split("\r\n")[1:] if line)
        location = next((line[10:] for line in raw.split("\r\n") if line.lower().startswith("location: ")), "")
        if "set-cookie" in headers:
            self._cookie = next(line[12:] for line in raw.split("\r\n") if line.lower().startswith("set-cookie: "))
            self._cookie = self._cookie.partition(";")[0]
        text = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
        return status, location, text


def hidden(html: str) -> dict[str, str]:
    """The page's hidden fields."""
    parts = html.partition('<form id="work"')[2].split('<input type="hidden" name="')[1:]
    return {name: value.partition('"')[0] for name, _, value in (part.partition('" value="') for part in parts[:3])}


async def annotate(link: str, invitation: str, who: Annotator, thinking: float, seen: Seen, rng: random.Random) -> None:
    """Answers until there is nothing more."""
    browser = Browser(link, seen)
    await browser.request("/join", {"token": invitation.rpartition("/")[2], "groups": ""})
    while True:
        _, _, html = await browser.request(f"/c/{CAMPAIGN.name}")
        fields = hidden(html)
        if "form" not in fields:
            if "asks no more" in html or len(seen.acknowledged) >= TARGET[0]:
                return
            await asyncio.sleep(1.0)
            continue
        prompt, first, second = (part.partition("</div>")[0] for part in html.split('class="text" dir="auto">')[1:4])
        await asyncio.sleep(rng.uniform(0.5, 1.5) * thinking)
        choice = "a" if who.prefers_first(prompt, first, second, rng) else "b"
        status, _, _ = await browser.request(f"/c/{CAMPAIGN.name}", fields | {"do": "send", "choice": choice})
        if status == 303:
            seen.acknowledged.add(fields["form"])


TARGET = [0]
"""Judgements asked for in all."""


class Process:
    """The service, started and killed."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.task = FeedbackTask(run="load", folder=folder, section=FeedbackConfig(database=database))
        self.cpu_seconds = 0.0
        """Of processor time, of all its lives, starting left out."""
        self.start()

    def start(self) -> None:
        state = self.task.folder / "services" / "feedback-0.json"
        state.unlink(missing_ok=True)
        with (self.task.folder / "log").open("ab") as log:
            command = [sys.executable, "-c", START, self.task.model_dump_json()]
            self.running = subprocess.Popen(command, stdout=log, stderr=log)
        while not (state.exists() and serving(ServiceState.read(state).address)):
            if self.running.poll() is not None:
                raise SystemExit((self.task.folder / "log").read_text())
            time.sleep(0.05)
        self.address = ServiceState.read(state).address
        self.link = str(json.loads((self.task.folder / "page.json").read_text())["link"])
        listening = Listening(port=int(self.address.rpartition(":")[2]))
        self.task = self.task.model_copy(update={"listening": listening})
        self._at_start = self._cpu()

    def _cpu(self) -> float:
        used = psutil.Process(self.running.pid).cpu_times()
        return float(used.user + used.system)

    def kill(self) -> None:
        self.cpu_seconds += self._cpu() - self._at_start
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()


async def campaign(process: Process, judgements: int, people: int, kills: int, thinking: float) -> tuple[Seen, float]:
    """All annotators at once; the process dies ``kills`` times, evenly over the judgements."""
    rng, requests = random.Random(0), every_request()
    pairs: list[Item] = []
    while len(pairs) < judgements // CAMPAIGN.overlap:
        request = rng.choice(requests)
        replies = {write(request, rng.choices(WRITERS, DEMONSTRATION_MIX)[0], rng).text for _ in range(2)}
        if len(replies) == 2:
            pairs.append(Item(str(len(pairs)), request.text, tuple(sorted(replies))))
    TARGET[0] = judgements
    seen = Seen()
    async with AsyncFeedbackClient(process.address, timeout=60) as client:
        await client.add_items(CAMPAIGN, pairs)
        links = [await client.invite(f"person {i}") for i in range(people)]
    started = time.monotonic()
    crowd = asyncio.gather(
        *(
            annotate(process.link, link, PANEL[i % len(PANEL)], thinking, seen, random.Random(i))
            for i, link in enumerate(links)
        )
    )
    for kill in range(1, kills + 1):
        while len(seen.acknowledged) < judgements * kill // (kills + 1):
            await asyncio.sleep(0.05)
        process.kill()
        await asyncio.to_thread(process.start)
    await crowd
    return seen, time.monotonic() - started


def audit(where: str | Path, seen: Seen) -> dict[str, int]:
    """What the database holds against what people were told."""
    database = Database(where)
    with database.engine.connect() as connection:
        forms = [row.form for row in connection.execute(sa.select(answers.c.form).where(answers.c.set_aside.is_(None)))]
        per_item = (
            connection.execute(sa.select(sa.func.count(answers.c.id)).group_by(answers.c.item_id)).scalars().all()
        )
        twice = connection.execute(
            sa.select(sa.func.count(answers.c.id))
            .group_by(answers.c.item_id, answers.c.person_id)
            .having(sa.func.count() > 1)
        ).all()
        left = connection.scalar(sa.select(sa.func.count()).select_from(items).where(items.c.room != 0))
    database.close()
    return {
        "stored": len(forms),
        "lost": len(seen.acknowledged - set(forms)),
        "double": len(forms) - len(set(forms)) + len(twice) + sum(count != CAMPAIGN.overlap for count in per_item),
        "items with room": int(left or 0),
    }


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of an empty database."""
    found = shutil.which("initdb") or str(next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), ""))
    if not found:
        raise SystemExit("PostgreSQL is not installed (Debian: apt install postgresql)")
    programs, folder = Path(found).resolve().parent, Path(tempfile.mkdtemp(prefix="postgres-"))
    options: dict[str, Any] = {"user": "postgres", "cwd": "/"} if os.geteuid() == 0 else {}
    if options:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, **options}
    subprocess.run([programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], **quiet)
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-l", f"{data}/log", "-o", settings, "start"], **quiet)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-m", "fast", "stop"], **quiet)
        shutil.rmtree(folder)


def measure(kind: str, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """One row."""
    judgements, people, kills = (200, 10, 1) if arguments.small else (arguments.judgements, 50, 5)
    folder = Path(tempfile.mkdtemp(prefix="feedback-"))
    try:
        if kind == "sqlite":
            return _row(kind, folder, None, judgements, people, kills, arguments.thinking)
        with postgresql() as url:
            return _row(kind, folder, url, judgements, people, kills, arguments.thinking)
    finally:
        shutil.rmtree(folder)


def _row(
    kind: str, folder: Path, url: str | None, judgements: int, people: int, kills: int, thinking: float
) -> Mapping[str, Any]:
    process = Process(folder, url)
    try:
        seen, seconds = asyncio.run(campaign(process, judgements, people, kills, thinking))
    finally:
        process.kill()
    times = sorted(seen.seconds)
    return {
        "database": kind,
        "people": people,
        "kills": kills,
        "acknowledged": len(seen.acknowledged),
        **audit(url or folder, seen),
        "seconds": round(seconds, 1),
        "requests": len(times),
        "p50 ms": round(1000 * times[len(times) // 2], 1),
        "p95 ms": round(1000 * times[int(0.95 * len(times))], 1),
        "p99 ms": round(1000 * times[int(0.99 * len(times))], 1),
        "CPU ms each": round(1000 * process.cpu_seconds / len(times), 2),
        "refused while away": seen.refused,
        "503": seen.statuses[503],
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    options_ = parser(__doc__)
    options_.add_argument("--database", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    options_.add_argument(
        "--thinking", type=float, default=1.0, help="mean seconds between page and answer (default 1)"
    )
    options_.add_argument("--judgements", type=int, default=10_000, help="in all (default 10,000)")
    chosen = options_.parse_args()
    rows = []
    for kind in chosen.database:
        rows.append(measure(kind, chosen))
        print(rows[-1], flush=True)
    report("feedback_load", rows, chosen, notes="machine's load average at the end in the last column")
