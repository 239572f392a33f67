"""New weights on a policy server: checked in memory and through the serving path, or not served at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.policy.best_of import Asked
from lodestar_services.policy.policy import Policy
from torch import Tensor

from lodestar.config import PolicyTask
from lodestar.errors import ModelError, ProbeFailed
from lodestar.model.loading import load_causal_lm, named_tensors, tensor_digests, weights_digest
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.records import Probe, Purpose, SamplingParams, Scored, WeightManifest, WeightVersion

PROBE = Scored((1, 5, 8, 9, 4, 7, 2), 3)


@pytest.fixture
async def policy(tiny_models: Any) -> AsyncIterator[Policy]:
    policy = Policy(PolicyTask(run="test", folder=Path(), model=str(tiny_models.sft)))
    await policy.load()
    yield policy
    await policy.engine.close()


@pytest.fixture
def published(tiny_models: Any) -> tuple[WeightManifest, Mapping[str, Tensor]]:
    """What a learner would publish after a step, probe and all."""
    model = load_causal_lm(tiny_models.sft)
    for parameter in model.parameters():
        parameter.data *= 1.02
    batch = PackedBatch.pack([PROBE.token_ids], [PROBE.prompt_tokens], device="cpu")
    logprobs_R, _ = response_logprobs(model, batch, temperature=1.0)
    digests = tensor_digests(model)
    manifest = WeightManifest(
        run="test",
        version=WeightVersion("9f31c2aa", 1, weights_digest(digests)),
        chain=(),
        tensors=digests,
        tokenizer_hash="",
        probes=(Probe(PROBE, tuple(logprobs_R.tolist()), tolerance=1e-4),),
    )
    return manifest, named_tensors(model)


async def sample(policy: Policy) -> list[int]:
    sampling = SamplingParams(12, temperature=0, ignore_eos=True)
    chunks = policy.generate(Asked((1, 5)), sampling, min_version=None, wait_seconds=0, purpose=Purpose.SERVING)
    return [token async for chunk in chunks for token in chunk.token_ids]


async def test_a_version_that_passes_its_probe_is_served(policy: Policy, published: Any) -> None:
    manifest, tensors = published
    await policy.apply(manifest, tensors)
    assert policy.info.version == manifest.version
    (served,) = await policy.logprobs([PROBE], temperature=1.0, entropy=False)
    assert served.logprobs == pytest.approx(manifest.probes[0].logprobs, abs=1e-4)


def disagreeing(manifest: WeightManifest) -> WeightManifest:
    """The same with a probe that a learner of another opinion would give."""
    (probe,) = manifest.probes
    return replace(manifest, probes=(replace(probe, logprobs=tuple(value - 0.01 for value in probe.logprobs)),))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
async def test_a_version_that_computes_otherwise_is_refused_and_the_old_one_served(
    policy: Policy, published: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, tensors = published
    if device == "gpu":  # where weights are copied in place, and back
        monkeypatch.setattr(type(policy.engine.engine), "can_stand_by", False)
    before, held = await sample(policy), policy.info.version
    with pytest.raises(ProbeFailed, match=r"differ from the learner.s by 0\.01"):
        await policy.apply(disagreeing(manifest), tensors)
    assert policy.info.version == held
    assert await sample(policy) == before
    await policy.apply(manifest, tensors)
    assert policy.info.version == manifest.version


async def test_tensors_that_hash_otherwise_once_they_were_copied_are_rolled_back(
    policy: Policy, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, tensors = published
    monkeypatch.setattr(type(policy.engine.engine), "can_stand_by", False)
    before, held = await sample(policy), policy.info.version
    with pytest.raises(ModelError, match="the tensors in memory hash to"):
        await policy.apply(manifest, {name: tensor + 0.5 for name, tensor in tensors.items()})
    assert policy.info.version == held
    assert await sample(policy) == before


async def test_weights_of_another_shape_or_dtype_are_refused(policy: Policy, published: Any) -> None:
    manifest, tensors = published
    with pytest.raises(ModelError, match=r"is torch.bfloat16, the model.s is torch.float32"):
        await policy.apply(manifest, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    with pytest.raises(ModelError, match="has shape"):
        await policy.apply(manifest, {name: tensor[:1] for name, tensor in tensors.items()})


async def test_the_start_model_must_pass_the_probe_too(policy: Policy, published: Any) -> None:
    manifest, _ = published
    held = policy.info.version
    start = WeightVersion("9f31c2aa", 0, held.digest)
    with pytest.raises(ProbeFailed):
        await policy.apply(replace(manifest, version=start), None)
    assert policy.info.version == held


async def test_the_start_model_is_relabelled_without_tensors(policy: Policy, published: Any) -> None:
    manifest, _ = published
    digest = policy.info.version.digest
    first = WeightManifest("test", WeightVersion("9f31c2aa", 0, digest), (), manifest.tensors, "")
    await policy.apply(first, None)
    assert policy.info.version == first.version


async def test_another_tokenizers_weights_are_refused(policy: Policy, published: Any) -> None:
    manifest, tensors = published
    foreign = WeightManifest("test", manifest.version, (), manifest.tensors, "e" * 64)
    with pytest.raises(ModelError, match="belong to tokenizer eeeeeeeeeeee"):
        await policy.apply(foreign, tensors)
