"""A real kube-apiserver with its etcd, without controllers or nodes, from the folder that KUBEBUILDER_ASSETS names.

    with running(Path(os.environ["KUBEBUILDER_ASSETS"]), folder) as configuration: ...

``setup-envtest use`` downloads such a folder.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

TOKEN = "0123456789abcdef"
START_SECONDS = 60


@contextmanager
def running(assets: Path, folder: Path) -> Iterator[client.Configuration]:
    """The client's configuration of an administrator, once the server is ready."""
    etcd_port, peer_port, port = (_free_port() for _ in range(3))
    _write_keys(folder)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    etcd = [
        str(assets / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
        f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
    ]
    api = [
        str(assets / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--cert-dir={folder / 'certs'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'accounts.pub'}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
    ]
    configuration = client.Configuration(host=f"https://127.0.0.1:{port}")
    configuration.api_key = {"authorization": f"Bearer {TOKEN}"}
    configuration.verify_ssl = False
    with ExitStack() as stack:
        for name, command in (("etcd", etcd), ("kube-apiserver", api)):
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        _await(configuration, folder / "kube-apiserver.log")
        yield configuration


def _await(configuration: client.Configuration, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with client.ApiClient(configuration) as api:
                client.CoreV1Api(api).list_namespace(_request_timeout=5)
            return
        except (ApiException, HTTPError):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_keys(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    (folder / "accounts.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "accounts.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
