"""What is published: full versions now and then and the changes between them, both bit-equal to the weights."""

from dataclasses import replace

import pytest
import torch

from lodestar.errors import ModelError
from lodestar.model.weights import tensor_digest, weights_digest
from lodestar.records import WeightVersion
from lodestar.weights import publication as module
from lodestar.weights.cache import WeightCache
from lodestar.weights.checks import check_manifest, route
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.publication import Publication
from lodestar.weights.tensors import load_verified


def weights(dtype=torch.bfloat16, seed=0):
    noise = torch.Generator().manual_seed(seed)
    shapes = {"embed": (700, 40), "head": (40, 700), "norm": (40,)}
    return {name: (torch.randn(shape, generator=noise) * 0.02).to(dtype) for name, shape in shapes.items()}


def step(tensors, learning_rate=1e-5, seed=1):
    """Moves the tensors in place, as an optimizer does."""
    noise = torch.Generator().manual_seed(1000 + seed)
    for tensor in tensors.values():
        moved = tensor.float() + learning_rate * torch.randn(tensor.shape, generator=noise)
        tensor.copy_(moved.to(tensor.dtype))


def snapshot(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "weights").mkdir()
    return WeightDirectory(tmp_path / "weights")


def publication(directory, **options):
    options = {"keep": 2, "full_every": 4} | options
    return Publication(directory, run="r", incarnation="aa", tokenizer_hash="", **options)


def kinds(manifest):
    return [(one.version.step, "full" if one.parent is None else f"from {one.parent.step}") for one in manifest.chain]


@pytest.mark.parametrize(
    ("dtype", "learning_rate"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-6), (torch.float32, 1e-7)]
)
def test_every_version_is_reached_from_each_of_the_chain_and_from_nothing(directory, dtype, learning_rate):
    published, live, held = publication(directory, deltas="all"), weights(dtype), {}
    for number in range(9):
        manifest = check_manifest(published.publish(live, number))
        digests = {name: tensor_digest(tensor) for name, tensor in live.items()}
        assert manifest.tensors == digests
        assert manifest.version == WeightVersion("aa", number, weights_digest(digests))
        ways = {"": {}} | {one.parent.digest: held[one.parent.digest] for one in manifest.chain if one.parent}
        for digest, tensors in ways.items():
            before = snapshot(tensors)
            assert equal(load_verified(directory, manifest, route(manifest, digest), tensors), live)
            assert equal(tensors, before), "what was held is read and not written"
        held[manifest.version.digest] = snapshot(live)
        step(live, learning_rate, seed=number)
    assert kinds(manifest) == [(7, "from 6"), (8, "from 7"), (8, "full")]
    assert len(route(manifest, manifest.chain[0].parent.digest)) == 2


def test_a_delta_is_a_fraction_and_the_full_version_comes_when_it_is_due(directory):
    published, live = publication(directory), weights()
    seen = []
    for number in range(6):
        manifest = published.publish(live, number)
        seen.append(kinds(manifest)[-1])
        step(live, 1e-6, seed=number)
    assert seen == [(0, "full"), (1, "from 0"), (2, "from 1"), (3, "from 2"), (4, "full"), (5, "from 4")]
    full, delta = manifest.chain[-2], manifest.chain[-1]
    assert delta.bytes < 0.1 * full.bytes
    assert sorted(path.name for path in directory.root.iterdir()) == ["aa-4", "aa-5", "announced.json"]


def test_a_delta_that_does_not_pay_is_not_sent_and_not_tried_again_for_a_while(directory, monkeypatch):
    published, live = publication(directory, full_every=3), weights()
    published.publish(live, 0)
    step(live, 1e-2)
    assert kinds(published.publish(live, 1))[-1] == (1, "full")
    assert not published._base, "the copy is given back"
    tried = []
    monkeypatch.setattr(module.Coder, "add", lambda self, changes: tried.append(changes))
    for number in (2, 3):
        assert kinds(published.publish(live, number))[-1] == (number, "full")
    assert not tried
    monkeypatch.undo()
    step(live, 1e-6)
    published.publish(live, 4)
    step(live, 1e-6, seed=5)
    assert kinds(published.publish(live, 5))[-1] == (5, "from 4")


def test_float32_is_sent_whole_unless_asked_for_and_always_with_a_full_one_every_version(directory):
    for options, dtype in (({}, torch.float32), ({"full_every": 1, "deltas": "all"}, torch.bfloat16)):
        published, live = publication(directory, **options), weights(dtype)
        for number in range(3):
            manifest = published.publish(live, number)
            step(live)
        assert all(one.parent is None for one in manifest.chain)
        assert not published._base


def test_a_version_is_published_again_in_full(directory):
    published, live = publication(directory), weights()
    published.publish(live, 0)
    step(live, 1e-6)
    first = published.publish(live, 1)
    again = published.publish(live, 1, full=True)
    assert again.version == first.version
    assert kinds(again) == [(0, "full"), (1, "full")]
    assert equal(load_verified(directory, again, route(again, ""), {}), live)
    step(live, 1e-6)
    assert kinds(published.publish(live, 2))[-1] == (2, "from 1")


def test_a_publication_that_fails_half_way_is_followed_by_a_full_one(directory, monkeypatch):
    published, live = publication(directory), weights()
    published.publish(live, 0)
    step(live, 1e-6)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        published.publish(live, 1)
    assert kinds(published.publish(live, 1))[-1] == (1, "full")
    assert equal(load_verified(directory, directory.announced(), route(directory.announced(), ""), {}), live)


def test_changes_of_other_weights_are_found_out_at_the_end(directory):
    published, live = publication(directory), weights()
    first = published.publish(live, 0)
    step(live, 1e-6)
    manifest = published.publish(live, 1)
    way = route(manifest, first.version.digest)
    with pytest.raises(ModelError, match="3 tensors differ"):
        load_verified(directory, manifest, way, weights(seed=9))
    with pytest.raises(ModelError, match="changes tensors that are not there"):
        load_verified(directory, manifest, way, {})
    with pytest.raises(ModelError, match="names no files that lead there"):
        route(replace(manifest, chain=way), "elsewhere")


def test_a_servers_cache_leads_from_its_start_model_and_is_written_whole_once_its_deltas_are_heavy(directory, tmp_path):
    published, live = publication(directory, full_every=100, keep=100), weights()
    start = published.publish(live, 0).version
    begun, whole = snapshot(live), 0
    cache = WeightCache(tmp_path / "cache", start)
    held = start
    for number in range(1, 12):
        step(live, 1e-5, seed=number)
        manifest = published.publish(live, number)
        way = route(manifest, held.digest)
        for one in way:
            folder = cache.folder(one.version)
            folder.mkdir(parents=True)
            for file in one.files:
                (folder / file.name).write_bytes((directory.folder(one.version) / file.name).read_bytes())
        cache.keep(manifest, way, live)
        held = manifest.version
        restarted = WeightCache(tmp_path / "cache", start)
        found = restarted.load("r", lambda: begun)
        assert found is not None
        assert found[0].version == manifest.version
        assert equal(found[1], live)
        whole += kinds(found[0]) == [(number, "full")]
    assert 0 < whole < 6
    assert cache.load("another run", lambda: begun) is None
