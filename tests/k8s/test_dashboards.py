"""Dashboards and rules use the metrics that the code declares, and a real Prometheus answers every query."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from lodestar import metrics

MONITORING = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"
TARGET_LABELS = {"role", "run", "pod", "le", "job", "instance"}
KINDS = (Counter, Gauge, Histogram)
ROLES = ("conductor", "policy", "against", "filtered", "previous", "reward", "reference", "learner", "rollout")

EXPORTER = """
import sys, time
import prometheus_client
from lodestar import metrics

VALUES = {"code": "INTERNAL", "outcome": "superseded", "state": "collecting", "reason": "probe"}
prometheus_client.start_http_server(int(sys.argv[1]), addr="127.0.0.1")
KINDS = (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)
declared = [m for m in vars(metrics).values() if isinstance(m, KINDS)] + list(metrics.TRAINING.values())
while True:
    for metric in declared:
        child = metric.labels(*(VALUES.get(name, "x") for name in metric._labelnames)) if metric._labelnames else metric
        if isinstance(metric, prometheus_client.Histogram):
            child.observe(0.5)
        elif isinstance(metric, prometheus_client.Gauge):
            child.set(1)
        else:
            child.inc()
    time.sleep(0.2)
"""
"""A process that exports every declared metric, each touched."""


def declared() -> dict[str, tuple[set[str], set[str]]]:
    """Sample names in the exposition and label names of each declared metric."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for metric in [m for m in vars(metrics).values() if isinstance(m, KINDS)] + list(metrics.TRAINING.values()):
        (family,) = metric.describe()
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found[family.name] = ({family.name + suffix for suffix in suffixes}, set(metric._labelnames))
    return found


def used(query: str) -> set[str]:
    """Names of Lodestar's samples in a query; recording rules have colons and are not among them."""
    return set(re.findall(r"(?<![\w:])lodestar_\w+(?!:)", query))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", MONITORING / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    return module


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}


def panel_queries() -> dict[str, str]:
    """``{"training / Score / A": query}`` with the run variable opened."""
    return {
        f"{name} / {panel['title']} / {target['refId']}": target["expr"].replace("$run", ".*")
        for name, board in boards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    }


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_committed_dashboards_are_what_the_generator_writes(generator: ModuleType) -> None:
    written = {uid: generator.render(uid, *content) for uid, content in generator.DASHBOARDS.items()}
    assert written == boards()


def test_the_component_ships_every_dashboard() -> None:
    files = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())["configMapGenerator"][0]["files"]
    assert {Path(file).stem for file in files} == set(boards())


def test_every_metric_is_on_a_dashboard_or_left_out_on_purpose(generator: ModuleType) -> None:
    shown = set().union(*map(used, panel_queries().values()))
    hidden = {name for name, (samples, _) in declared().items() if not samples & shown}
    assert hidden == generator.NOT_SHOWN


def test_no_metric_has_a_label_that_prometheus_gives_to_the_target() -> None:
    for name, (_, labels) in declared().items():
        assert not labels & TARGET_LABELS, name


def test_queries_name_metrics_and_labels_that_exist() -> None:
    samples = {sample: labels for names, labels in declared().values() for sample in names}
    for place, query in {**panel_queries(), **{r.get("alert", r.get("record")): r["expr"] for r in rules()}}.items():
        assert used(query) <= samples.keys(), place
        known = TARGET_LABELS.union(*(samples[name] for name in used(query)))
        matched = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", query))
        grouped = {label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
        assert matched | grouped <= known, place


def test_legends_name_labels_that_the_query_keeps() -> None:
    for name, board in boards().items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                groups = re.findall(r"by \(([^)]*)\)", target["expr"])
                if groups:
                    kept = {label.strip() for label in groups[0].split(",")}
                    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, (name, panel["title"])


def test_panels_do_not_overlap_and_explain_themselves() -> None:
    for name, board in boards().items():
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            area = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & area, (name, panel["title"])
            assert place["x"] + place["w"] <= 24
            assert panel["description"], (name, panel["title"])
            cells |= area


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, query: str) -> list[Any]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=5) as answer:
        return list(json.load(answer)["data"]["result"])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a Prometheus that has scraped a fleet's metrics a few times, with our rules loaded."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    exporter_port, port = free_port(), free_port()
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in groups]}))
    targets = [
        {"targets": [f"127.0.0.1:{exporter_port}"], "labels": {"role": role, "run": "r", "pod": f"{role}-0"}}
        for role in ROLES
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "lodestar", "static_configs": targets}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    exporter = subprocess.Popen([sys.executable, "-c", EXPORTER, str(exporter_port)])
    server = subprocess.Popen(
        [
            binary,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
    )
    try:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            time.sleep(0.5)
            assert (exporter.poll(), server.poll()) == (None, None), "the exporter or Prometheus ended"
            try:
                if len(ask(port, "rate(lodestar_rpcs_total[1m])")) == len(ROLES):
                    break
            except OSError:
                continue
        else:
            pytest.fail("Prometheus did not scrape the fleet within 40 s")
        yield port
    finally:
        for process in (server, exporter):
            process.terminate()
            process.wait(timeout=10)


def test_a_real_prometheus_answers_every_panel(prometheus: int) -> None:
    empty = [place for place, query in panel_queries().items() if not ask(prometheus, query)]
    assert empty == []


def test_a_real_prometheus_evaluates_every_rule(prometheus: int) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    deadline = time.monotonic() + 20
    while missing := {name for name in recorded if not ask(prometheus, name)}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)
    with urllib.request.urlopen(f"http://127.0.0.1:{prometheus}/api/v1/rules", timeout=5) as answer:
        groups = json.load(answer)["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


@pytest.mark.slow
def test_a_real_run_gives_every_panel_data(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    spec = importlib.util.spec_from_file_location("rehearsal", MONITORING / "rehearsal.py")
    assert spec is not None
    assert spec.loader is not None
    rehearsal = importlib.util.module_from_spec(spec)
    sys.modules["rehearsal"] = rehearsal
    spec.loader.exec_module(rehearsal)
    with rehearsal.scraped_run(tmp_path) as scraped:
        assert rehearsal.empty_panels(scraped) == []
        assert scraped.over_time("lodestar_weight_bytes_sent_total > 0")
