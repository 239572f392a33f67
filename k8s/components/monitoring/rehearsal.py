"""A real run watched by a real Prometheus, and pictures of the dashboards' own queries over it.

    python k8s/components/monitoring/rehearsal.py docs/dashboards      # needs prometheus and chromium

The pictures are drawn with plotly from the dashboards' JSON: the same queries, titles and legends, and not Grafana's
own screenshots.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as graph
import yaml

from lodestar.client import PolicyClient
from lodestar.crew.here import run_here
from lodestar.errors import InvalidArgument, LodestarError
from lodestar.files import write_atomically
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.local.view import plain_view
from lodestar.recipe.plan import plan
from lodestar.rpc.state import ServiceState

HERE = Path(__file__).parent
WIDTH, ROW = 1500, 250
"""Pixels of a picture, and of one row of panels."""


@dataclass(frozen=True)
class Scraped:
    """A Prometheus that has scraped a run: ``scraped.now("lodestar_step")``."""

    port: int
    began: float
    """Unix time."""

    def now(self, query: str) -> list[Any]:
        """Instant vector."""
        return self._ask("query", query=query)

    def over_time(self, query: str) -> list[Any]:
        """Series over the run, two points a second."""
        return self._ask("query_range", query=query, start=str(self.began), end=str(time.time()), step="0.5")

    def _ask(self, path: str, **parameters: str) -> list[Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?" + urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(url, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])


@contextlib.contextmanager
def scraped_run(root: Path, *, steps: int = 20, batch: int = 24) -> Iterator[Scraped]:
    """Conducts PPO on tiny random models through all services while Prometheus scrapes them; yields when it is done."""
    write_tiny_models(root / "tiny", hidden=48, layers=2, eos_bias=0.5)
    config = tiny_config(
        root,
        "rehearsal",
        stages={"ppo": {"batch": batch, "steps": steps, "max_tokens": 32, "epochs": 2, "score": {"offset": "none"}}},
        services={"learner": {"checkpoint_every": 3, "threads": 1}},
    )
    ended = threading.Event()
    with prometheus(root) as port:
        scraped = Scraped(port, time.time())
        thread = threading.Thread(target=_point_out, args=(root, config.name, ended))
        thread.start()
        try:
            run_here(config, plan(config), plain_view)
        finally:
            ended.set()
            thread.join()
        yield scraped


def _point_out(root: Path, run: str, ended: threading.Event) -> None:
    """Tells Prometheus of every process by its state file; makes one call that is refused, for the errors' panel."""
    refused = False
    while not ended.wait(0.1):
        targets = []
        for path in (root / run / "services").glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                state = ServiceState.read(path)
                role = state.name.rpartition("-")[0].replace("run", "conductor")
                labels = {"role": role, "run": run, "pod": state.name}
                targets.append({"targets": [f"127.0.0.1:{state.metrics_port}"], "labels": labels})
                if role == "policy" and not refused:
                    with PolicyClient(state.address) as client:
                        try:
                            client.generate((10**6,), max_tokens=1)
                        except LodestarError as error:
                            refused = isinstance(error, InvalidArgument)
        write_atomically(root / "targets.json", json.dumps(targets), durable=False)


@contextlib.contextmanager
def prometheus(root: Path) -> Iterator[int]:
    """Port of a Prometheus that scrapes what root/targets.json names, twice a second, our rules loaded."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("prometheus is not installed")
    groups = yaml.safe_load((HERE / "rules.yaml").read_text())["spec"]["groups"]
    (root / "rules.yaml").write_text(yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in groups]}))
    found = {"files": [str(root / "targets.json")], "refresh_interval": "1s"}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "lodestar", "file_sd_configs": [found]}],
    }
    (root / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [binary, f"--config.file={root / 'prometheus.yaml'}", f"--storage.tsdb.path={root / 'tsdb'}"]
    server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
    try:
        yield port
    finally:
        server.terminate()
        server.wait(timeout=10)


def panels() -> dict[str, dict[str, Any]]:
    """Dashboards as JSON, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "dashboards").glob("*.json"))}


def opened(query: str) -> str:
    """The query with the run variable opened, as Grafana does for "All"."""
    return query.replace("$run", ".*")


def empty_panels(scraped: Scraped) -> list[str]:
    """Queries of panels that return nothing; the rehearsal asks no people and no gateway."""
    return [
        f"{name} / {panel['title']} / {target['refId']}"
        for name, board in panels().items()
        if name not in ("people", "programs")
        for panel in board["panels"]
        for target in panel["targets"]
        if not scraped.over_time(opened(target["expr"]))
    ]


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), template)


def _panel(panel: dict[str, Any], scraped: Scraped) -> str:
    place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
    size = {"width": WIDTH * place["w"] // 24 - 14, "height": ROW - 14}
    series = [
        (_legend(target["legendFormat"], found["metric"]), found["values"])
        for target in panel["targets"]
        for found in scraped.over_time(opened(target["expr"]))
    ]
    title = html.escape(panel["title"])
    if panel["type"] == "stat":
        rows = "".join(
            f"<p><b>{float(points[-1][1]):g}</b> {html.escape(name)}</p>" for name, points in series if points
        )
        body = f"<h3>{title}</h3><div class=stat>{rows}</div>"
        return f'<div class=panel style="width:{size["width"]}px;height:{size["height"]}px">{body}</div>'
    figure = graph.Figure()
    for name, points in series:
        seconds = [float(at) - scraped.began for at, _ in points]
        figure.add_scatter(x=seconds, y=[float(value) for _, value in points], name=name, mode="lines")
    figure.update_layout(
        **size,
        title={"text": f"{title} <i>[{unit}]</i>" if unit != "short" else title, "font": {"size": 13}},
        margin={"l": 45, "r": 10, "t": 32, "b": 24},
        template="plotly_white",
        showlegend=len(series) > 1,
        legend={"orientation": "h", "font": {"size": 9}},
    )
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return f"<div class=panel>{drawn}</div>"


def draw(scraped: Scraped, folder: Path) -> None:
    """Writes one PNG per dashboard."""
    from plotly.offline import get_plotlyjs

    style = "body{font:13px sans-serif;margin:6px;display:flex;flex-wrap:wrap;background:#f4f5f5}"
    style += ".panel{background:#fff;margin:4px;border:1px solid #ddd}h3{font-size:13px;margin:8px;font-weight:400}"
    style += ".stat{margin:20px;font-size:16px}h2{width:100%;margin:4px}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, board in panels().items():
        body = "".join(_panel(panel, scraped) for panel in board["panels"])
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) // 8
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch) / "page.html"
            page.write_text(
                f"<meta charset=utf-8><style>{style}</style><script>{get_plotlyjs()}</script>"
                f"<h2>{html.escape(board['title'])}</h2>{body}"
            )
            command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--window-size={WIDTH + 20},{rows * (ROW + 4) + 50}", "--virtual-time-budget=8000"]
            command += [f"--user-data-dir={scratch}/profile", f"--screenshot={folder / name}.png", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Runs, and draws into the folder that is named."""
    with tempfile.TemporaryDirectory() as scratch, scraped_run(Path(scratch), steps=24, batch=32) as scraped:
        draw(scraped, Path(sys.argv[1]).resolve())
        if empty := empty_panels(scraped):
            print("these queries returned nothing:", *empty, sep="\n  ")


if __name__ == "__main__":
    main()
