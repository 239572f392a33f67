"""The tls component: certificates that fit the fleet, and a Redis that serves the queue over TLS to one user."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from lodestar.cli.certs import HOLDERS
from lodestar.errors import QueueUnavailable
from lodestar.queue.address import RedisAddress
from lodestar.queue.connection import connect
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion
from lodestar.rpc.access import Gate
from lodestar.rpc.certificates import Authority

Manifest = dict[str, Any]
Workloads = Callable[[str], dict[str, tuple[Manifest, Manifest]]]
OVERLAY = "cpu-dev-tls"
PASSWORD = "0123abcd"
FLEETS = ("policy", "against", "filtered", "previous", "reward", "reference")


@pytest.fixture(scope="module")
def certificates(render: Callable[[str], list[Manifest]]) -> dict[str, Manifest]:
    found = [m for m in render(OVERLAY) if m["kind"] == "Certificate"]
    return {m["metadata"]["name"]: m["spec"] for m in found}


def secret_of(pod: Manifest) -> str:
    (name,) = [v["secret"]["secretName"] for v in pod["spec"]["volumes"] if v["name"] == "tls"]
    return str(name)


def test_every_workload_mounts_a_certificate_of_its_own(
    workloads: Workloads, certificates: dict[str, Manifest]
) -> None:
    for name, (_, pod) in workloads(OVERLAY).items():
        assert secret_of(pod) == certificates[name]["secretName"] == f"{name}-tls"
        (container,) = pod["spec"]["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
        assert mount["readOnly"] is True
    assert len({spec["secretName"] for spec in certificates.values()}) == len(certificates)


def test_certificates_name_the_role_and_every_address_that_is_called(
    render: Callable[[str], list[Manifest]], certificates: dict[str, Manifest]
) -> None:
    services = {m["metadata"]["name"] for m in render(OVERLAY) if m["kind"] == "Service"}
    assert services == {"conductor", "learner", "redis", *FLEETS}
    for host in services:
        assert {host, f"{host}.lodestar.svc.cluster.local"} <= set(certificates[host]["dnsNames"])
        assert "server auth" in certificates[host]["usages"]
    for name, spec in certificates.items():
        if name == "lodestar-authority":
            continue
        shown = {"transport_security_type": [b"ssl"], "x509_common_name": [name.encode()]}
        uris = [uri.encode() for uri in spec.get("uris", [])]
        if not HOLDERS[name]:
            assert uris == []
            continue
        identity = Gate().admit(
            "lodestar.v1.PolicyService/Generate", {**shown, "x509_subject_alternative_name": uris}, ()
        )
        assert identity is not None
        assert (identity.name, identity.role) == (name, HOLDERS[name])


def test_nothing_is_plaintext_but_probes_and_metrics(
    render: Callable[[str], list[Manifest]], workloads: Workloads
) -> None:
    fleet = next(m["data"] for m in render(OVERLAY) if m["metadata"]["name"].startswith("fleet-"))
    assert (fleet["LODESTAR_INSECURE"], fleet["LODESTAR_TLS"], fleet["REDIS_SCHEME"]) == ("false", "/tls", "rediss")
    assert "--insecure" not in str(render(OVERLAY))
    for name in ("conductor", "stage", "learner", "rollout", *FLEETS):
        _, pod = workloads(OVERLAY)[name]
        assert any(m["mountPath"] == fleet["LODESTAR_TLS"] for m in pod["spec"]["containers"][0]["volumeMounts"])


class Redis:
    """The manifest's own command in a process here, with its paths moved."""

    def __init__(self, command: list[str], folder: Path, certificates: Path, conf: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        text = re.sub(r"(?m)^dir .*$", f"dir {folder}", conf.read_text())
        (folder / "redis.conf").write_text(text + "\nbind 127.0.0.1\n")
        moved = {"/etc/redis/redis.conf": str(folder / "redis.conf"), "6379": str(self.port)}
        words = [moved.get(word, word).replace("$(REDIS_PASSWORD)", PASSWORD) for word in command]
        words = [re.sub("^/tls/", f"{certificates}/redis/", word) for word in words]
        self.certificates = certificates
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def url(self, user: str = "lodestar", password: str = PASSWORD, scheme: str = "rediss") -> str:
        return f"{scheme}://{user}:{password}@127.0.0.1:{self.port}/0"

    def client(self, url: str, holder: str = "rollout") -> Any:
        return connect(RedisAddress.parse(url), self.certificates / holder)


def answers(server: Redis) -> bool:
    try:
        return bool(server.client(server.url()).ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def redis_over_tls(workloads: Workloads, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if shutil.which("redis-server", path="/usr/bin:/usr/local/bin") is None:
        pytest.skip("no redis-server with TLS is installed")
    folder = tmp_path_factory.mktemp("redis")
    authority = Authority.create()
    for name in ("redis", "rollout"):
        authority.issue(folder / "certs" / name, HOLDERS[name], name)
    Authority.create().issue(folder / "certs" / "stranger", "worker", "stranger")
    (container,) = workloads(OVERLAY)["redis"][1]["spec"]["containers"]
    executable = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    command = [str(executable), *container["command"][1:]]
    server = Redis(command, folder, folder / "certs", repository / "k8s" / "base" / "redis.conf")
    try:
        deadline = time.monotonic() + 10
        while not answers(server):
            if server.process.poll() is not None:
                pytest.skip("this redis-server was built without TLS")
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.05)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=10)


async def test_the_queue_works_over_tls_as_the_one_user(redis_over_tls: Redis) -> None:
    run, url, tls = f"r{uuid.uuid4().hex[:6]}", redis_over_tls.url(), redis_over_tls.certificates / "rollout"
    learner = RedisLearnerQueue(url, outage_seconds=3, tls=tls)
    learner.open(run, "aaaa")
    ticket = Ticket(run, "aaaa", 0, 0, Prompt("p", "what ?", (1, 2)), 1, 7, 0, 16, 1.0)
    learner.issue([ticket])
    worker = RedisWorkerQueue(url, run, "w", outage_seconds=3, tls=tls)
    (claim,) = await worker.take(1, 2.0)
    assert claim.ticket == ticket
    assert await worker.heartbeat([claim]) == []
    version = WeightVersion("aaaa", 0, "d")
    sample = Sample((7, 1), (-0.5, -1.0), (-0.5, -1.5), 1.25, FinishReason.EOS, "yes", 0.5)
    assert await worker.finish(claim, Rollout(ticket, version, (sample,), "w", 0.5, 0.25))
    (delivery,) = learner.receive(2.0)
    learner.settle([delivery.receipt])
    assert learner.depth().waiting == 0
    await worker.close()
    learner.close()


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [("lodestar", "wrong", "invalid username-password pair"), ("default", PASSWORD, "invalid username-password pair")],
)
def test_redis_refuses_other_users(redis_over_tls: Redis, user: str, password: str, reason: str) -> None:
    tls = redis_over_tls.certificates / "rollout"
    queue = RedisLearnerQueue(redis_over_tls.url(user, password), outage_seconds=3, tls=tls)
    with pytest.raises(QueueUnavailable, match=reason):
        queue.open("r", "a")
    queue.close()


def test_redis_refuses_plaintext_and_certificates_of_others(redis_over_tls: Redis) -> None:
    for url, holder in ((redis_over_tls.url(scheme="redis"), "rollout"), (redis_over_tls.url(), "stranger")):
        queue = RedisLearnerQueue(url, outage_seconds=0.2, tls=redis_over_tls.certificates / holder)
        with pytest.raises(QueueUnavailable):
            queue.open("r", "a")
        queue.close()


def test_a_renewed_certificate_fails_the_liveness_probe_and_a_restart_heals_it(
    redis_over_tls: Redis, workloads: Workloads, tmp_path: Path
) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed")
    (container,) = workloads(OVERLAY)["redis"][1]["spec"]["containers"]
    certificates = redis_over_tls.certificates / "redis"
    (tmp_path / "data").mkdir()
    shutil.copytree(certificates, tmp_path / "tls")

    def probe(name: str) -> bool:
        words = [
            word.replace("/tls/", f"{tmp_path}/tls/")
            .replace("/data/", f"{tmp_path}/data/")
            .replace("redis-cli ", f"redis-cli -p {redis_over_tls.port} ")
            for word in container[name]["exec"]["command"]
        ]
        environment = os.environ | {"REDISCLI_AUTH": PASSWORD}
        return subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0

    assert not probe("livenessProbe")
    assert probe("startupProbe")
    assert probe("livenessProbe")
    # As the kubelet would: another certificate in place of the one that was mounted.
    (tmp_path / "tls" / "tls.crt").write_bytes((redis_over_tls.certificates / "rollout" / "tls.crt").read_bytes())
    (tmp_path / "tls" / "tls.key").write_bytes((redis_over_tls.certificates / "rollout" / "tls.key").read_bytes())
    assert probe("readinessProbe"), "it serves until it is restarted"
    assert not probe("livenessProbe")
    assert probe("startupProbe")
    assert probe("livenessProbe")


@pytest.mark.parametrize("command", [("CONFIG", "GET", "*"), ("FLUSHALL",), ("SET", "other", "1"), ("ACL", "LIST")])
def test_the_user_administers_nothing_and_reaches_no_other_keys(
    redis_over_tls: Redis, command: tuple[str, ...]
) -> None:
    with pytest.raises(Exception, match=r"NOPERM|no permissions"):
        redis_over_tls.client(redis_over_tls.url()).execute_command(*command)
