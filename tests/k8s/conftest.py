"""Renders the manifests once with ``kubectl kustomize`` and looks things up in what comes out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "k8s"

Manifest = dict[str, Any]
Render = Callable[[str], list[Manifest]]


_spec = importlib.util.spec_from_file_location("api_server", Path(__file__).parent / "api_server.py")
assert _spec is not None
assert _spec.loader is not None
api_server = importlib.util.module_from_spec(_spec)
sys.modules["api_server"] = api_server
_spec.loader.exec_module(api_server)
sys.path.insert(0, str(Path(__file__).parent))  # kubelet.py


@pytest.fixture
def api() -> Iterator[Any]:
    """A small API server (api_server.py), empty."""
    with api_server.ApiServer() as running:
        yield running


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[Manifest]]:
    """Renders a folder; the test fails with kustomize's own words when it cannot be."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")

    def run(folder: Path) -> list[Manifest]:
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]

    return run


@pytest.fixture(scope="session")
def render(kustomize: Callable[[Path], list[Manifest]]) -> Render:
    """Objects of ``overlays/NAME``, cached for the session."""
    return cache(lambda name: kustomize(K8S / "overlays" / name))


@pytest.fixture(scope="session")
def compose(
    kustomize: Callable[[Path], list[Manifest]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[tuple[str, ...]], list[Manifest]]]:
    """Objects of the base with some components and a run, as an overlay of the reader's own would have them."""

    def run(components: tuple[str, ...]) -> list[Manifest]:
        folder = tmp_path_factory.mktemp("overlay").resolve()
        (folder / "run.yaml").write_text("name: composed\n")
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "lodestar",
            "resources": [os.path.relpath(K8S / "base", folder)],
            "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
            "configMapGenerator": [
                {"name": "run", "files": ["run.yaml"]},
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return kustomize(folder)

    return run


POD_PATHS = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "Job": ("spec", "template"),
}


@pytest.fixture(scope="session")
def pod_of() -> Callable[[Manifest], Manifest | None]:
    """The pod template of a workload, with metadata and spec; None for objects that run nothing."""

    def find(manifest: Manifest) -> Manifest | None:
        path = POD_PATHS.get(manifest["kind"])
        if path is None:
            return None
        template: Any = manifest
        for key in path:
            template = template[key]
        return dict(template)

    return find


@pytest.fixture(scope="session")
def workloads(
    render: Render, pod_of: Callable[[Manifest], Manifest | None]
) -> Callable[[str], dict[str, tuple[Manifest, Manifest]]]:
    """``{name: (object, pod template)}`` of an overlay."""

    def find(overlay: str) -> dict[str, tuple[Manifest, Manifest]]:
        return {m["metadata"]["name"]: (m, pod) for m in render(overlay) if (pod := pod_of(m)) is not None}

    return find
