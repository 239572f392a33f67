"""Counters that survive their process, read from real Prometheus endpoints."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from lodestar.local.ports import free_ports
from lodestar.local.telemetry import Counters, scrape


def test_a_scrape_sums_over_labels() -> None:
    registry = CollectorRegistry()
    rpcs = Counter("lodestar_rpcs", "", ["method"], registry=registry)
    rpcs.labels("Score").inc(3)
    rpcs.labels("GetModel").inc(2)
    Gauge("lodestar_weight_step", "", registry=registry).set(7)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        samples = scrape(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert samples is not None
    assert samples["lodestar_rpcs_total"] == 5
    assert samples["lodestar_weight_step"] == 7


def test_a_port_where_nobody_listens_gives_nothing() -> None:
    assert scrape(free_ports(1)[0], timeout=0.5) is None


def test_counts_add_up_over_restarts_and_gauges_do_not() -> None:
    counters = Counters()
    counters.update({"rpcs": 10.0, "step": 3.0})
    counters.restarted()
    assert counters.present("step") is None
    counters.update({"rpcs": 4.0, "step": 1.0})
    assert counters.total("rpcs") == 14
    assert counters.present("step") == 1.0


def test_a_port_that_was_found_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner's ports are found before those of its servers, of which one got the learner's."""
    monkeypatch.setattr("lodestar.local.ports.LOWEST", 10_240)
    monkeypatch.setattr("lodestar.local.ports.HIGHEST", 10_639)
    found = [port for _ in range(20) for port in free_ports(10)]
    assert len(set(found)) == 200


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20
    assert free_ports(0) == []


def test_a_free_port_is_none_that_an_outgoing_connection_may_get() -> None:
    told = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not told.exists():
        pytest.skip("only Linux tells which ports those are")
    low, high = map(int, told.read_text().split())
    assert not [port for port in free_ports(50) if low <= port <= high]
