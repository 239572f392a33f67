"""The committed stubs are what protoc makes of proto/."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_committed_stubs_are_what_protoc_generates(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    assert protos
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs, *protos], check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "lodestar" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "lodestar" / "v1").glob("*_pb2*")}
    stale = sorted(name for name in generated.keys() | committed.keys() if generated.get(name) != committed.get(name))
    assert not stale, f"run make proto: {', '.join(stale)}"
