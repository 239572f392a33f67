"""Full weights are safetensors files, and any cut of one into pieces reads the same tensors and digests."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from lodestar.errors import ModelError
from lodestar.model.weights import tensor_digest
from lodestar.weights.full import FullReader, layout
from lodestar.weights.publication import write_full

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4).bfloat16(),
    "a.weight": torch.randn(5, generator=torch.Generator().manual_seed(1)),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
}


def read(data: bytes, cut: int = 2**20, size: int | None = None) -> FullReader:
    reader = FullReader("model.safetensors", len(data) if size is None else size)
    for start in range(0, len(data), cut):
        reader.feed(data[start : start + cut])
    reader.finish()
    return reader


@pytest.fixture
def written(tmp_path):
    file = write_full(tmp_path / "model.safetensors", TENSORS)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert file.bytes == len(data)
    return data


def test_the_file_is_one_that_safetensors_reads(written, tmp_path):
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


@given(cut=st.integers(1, 400))
def test_any_pieces_give_tensors_and_digests(cut):
    reader = read(save(TENSORS), cut)
    assert {name: tensor_digest(tensor) for name, tensor in TENSORS.items()} == reader.digests
    assert all(torch.equal(reader.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_file_that_is_cut_or_goes_on_is_told(written):
    for wrong in (written[:-1], written[:30], written[:4], b""):
        with pytest.raises(ModelError, match="ends before its tensors"):
            read(wrong, size=len(written))
    with pytest.raises(ModelError, match="goes on behind its tensors"):
        read(written + b"x", size=len(written))


def header(told, size=64):
    text = json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "told",
    [
        {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 60]}},
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},
        {"a": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 64]}},
        {"a": {"dtype": "I8", "shape": [64], "data_offsets": [0, 64]}},
        {"a": {"dtype": "F32", "shape": [16]}},
        {"a": [1]},
        [1],
        {},
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(told):
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        read(header(told))


def test_headers_longer_than_the_file_and_other_dtypes_are_refused():
    with pytest.raises(ModelError, match=f"a header of {2**60} bytes"):
        read(struct.pack("<Q", 2**60) + bytes(100))
    with pytest.raises(ModelError, match=r"count is torch\.int64"):
        layout({"count": torch.zeros(2, dtype=torch.int64)})
