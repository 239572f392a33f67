"""Ids that may be sampled, ids that end a response, and adapters and comparisons at load."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.errors import InvalidArgument, ModelError
from lodestar.model import probe
from lodestar.model.loading import load_causal_lm, load_tokenizer, save_model
from lodestar.model.logits import LogitRule, logit_rule, sampled_ids
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.model.tokenizers import Vocabulary, end_ids
from lodestar.records import FinishReason, SamplingParams, Scored
from tests.unit.model import zoo
from tests.unit.model.worlds import PROMPTS, SEQUENCES, VOCAB, plain_model, word_tokenizer, words

BATCH = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A model of 199 rows and a tokenizer of 37 ids, whose spare rows are by far the likeliest."""
    model = zoo.tiny_model(zoo.tiny_config("llama"))
    with torch.no_grad():
        model.lm_head.weight[VOCAB:] *= 4
    save_model(model, word_tokenizer(), tmp_path / "padded")
    return tmp_path / "padded"


def engine_of(path: Path) -> Engine:
    return Engine(load_causal_lm(path), load_tokenizer(path), PolicyConfig(max_sequences=4, kv_cache_tokens=512))


def test_ids_without_text_are_never_sampled_and_have_no_share_of_the_distribution(padded: Path) -> None:
    engine = engine_of(padded)
    assert sampled_ids(engine.model) == VOCAB
    samples = engine.generate([5, 6, 7], SamplingParams(30, n=4, seed=1, ignore_eos=True, min_tokens=3))
    assert all(token < VOCAB for sample in samples for token in sample.tokens)
    for sample in samples:
        scored = engine.logprobs([Scored(tuple(sample.tokens), prompt_tokens=3)])[0]
        assert scored.logprobs == pytest.approx(sample.logprobs, abs=1e-4)
        with torch.no_grad():
            engine.model.set_attn_implementation("eager")
            logp_SV = engine.model(torch.tensor([sample.tokens])).logits[0, :, :VOCAB].log_softmax(-1)
            engine.model.set_attn_implementation("lodestar")
        expected = [float(logp_SV[i - 1, sample.tokens[i]]) for i in range(3, len(sample.tokens))]
        assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_sft_trains_the_whole_vocabulary(padded: Path) -> None:
    model = load_causal_lm(padded)
    with torch.no_grad():
        whole, _ = response_logprobs(model, BATCH, temperature=1.0, whole=True)
        among_sampled, _ = response_logprobs(model, BATCH, temperature=1.0)
    assert bool((whole < among_sampled).all())


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids", "prompt"])
def test_a_request_that_names_an_id_without_text_is_refused_alone(field: str, padded: Path) -> None:
    engine = engine_of(padded)
    options = {"logit_bias": {VOCAB: 1.0}} if field == "logit_bias" else {"stop_token_ids": (VOCAB,)}
    with pytest.raises(InvalidArgument, match=f"token id {VOCAB} is outside the vocabulary"):
        engine.request([VOCAB if field == "prompt" else 5], SamplingParams(3, **({} if field == "prompt" else options)))


def test_holes_among_the_ids_are_not_sampled_either(tmp_path: Path) -> None:
    tokenizer = words(40)
    vocabulary = Vocabulary(size=40, tokens=40, pad_id=0, holes=(7, 9))
    assert Vocabulary.of(tokenizer) == Vocabulary(40, 40, 0)
    model = zoo.tiny_model(zoo.tiny_config("gemma2"), attention="lodestar")
    model.lodestar_vocabulary = vocabulary
    engine = Engine(model, tokenizer, PolicyConfig(max_sequences=4, kv_cache_tokens=512))
    samples = engine.generate([5, 6], SamplingParams(40, n=4, seed=1, ignore_eos=True))
    assert not {7, 9} & {token for sample in samples for token in sample.response}
    scored = engine.logprobs([Scored(tuple(samples[0].tokens), prompt_tokens=2)])[0]
    assert scored.logprobs == pytest.approx(samples[0].logprobs, abs=1e-4)


def test_every_eos_id_ends_a_response(tmp_path: Path) -> None:
    model = plain_model("llama")
    model.generation_config.eos_token_id = [1, 5]
    save_model(model, word_tokenizer(), tmp_path)
    engine = engine_of(tmp_path)
    assert engine.eos_ids == end_ids(engine.model, engine.tokenizer) == {1, 5}
    samples = engine.generate([8, 9], SamplingParams(60, n=4, seed=2, logit_bias={5: 8.0}))
    assert {sample.tokens[-1] for sample in samples} == {5}
    assert {sample.finish_reason for sample in samples} == {FinishReason.EOS}


def test_an_eos_id_beyond_the_vocabulary_is_refused_before_any_request(tmp_path: Path) -> None:
    model = plain_model("llama")
    model.generation_config.eos_token_id = [1, VOCAB + 3]
    save_model(model, word_tokenizer(), tmp_path)
    with pytest.raises(ModelError, match=f"generation_config.json: eos_token_id is {VOCAB + 3}"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "options", "rule"),
    [
        ("granite", {"logits_scaling": 8.0}, LogitRule(1 / 8)),
        ("cohere", {"logit_scale": 0.25}, LogitRule(0.25)),
        ("gemma2", {"final_logit_softcapping": 30.0}, LogitRule(1.0, 30.0)),
        ("llama", {}, LogitRule()),
    ],
)
def test_the_rule_of_an_architecture(model_type: str, options: dict[str, float], rule: LogitRule) -> None:
    assert logit_rule(zoo.tiny_config(model_type, **options)) == rule


def test_a_cap_that_is_no_positive_number_is_refused() -> None:
    with pytest.raises(ModelError, match="final_logit_softcapping must be a positive number, got -1"):
        logit_rule(zoo.tiny_config("gemma2", final_logit_softcapping=-1.0))


# --- at load -------------------------------------------------------------------------------------------------------
def test_an_adapter_beside_its_model_is_merged(tmp_path: Path) -> None:
    plain = plain_model("llama")
    save_model(plain, word_tokenizer(), tmp_path)
    start = AutoModelForCausalLM.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
        adapted = get_peft_model(start, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = adapted(torch.tensor([SEQUENCES[0]])).logits[0].log_softmax(-1)
    adapted.save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert all(parameter.requires_grad for parameter in model.parameters())
    logprobs_R, _ = response_logprobs(model, PackedBatch.pack(SEQUENCES[:1], [1], device="cpu"), temperature=1.0)
    wanted = expected[:-1].gather(1, torch.tensor(SEQUENCES[0][1:])[:, None])[:, 0]
    torch.testing.assert_close(logprobs_R, wanted, atol=1e-5, rtol=1e-5)


def test_an_adapter_without_its_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a LoRA adapter and not its model"):
        load_causal_lm(tmp_path)


def test_a_model_is_compared_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LODESTAR_CACHE", str(tmp_path / "cache"))
    made: list[int] = []
    compare = probe._compare_logprobs
    monkeypatch.setattr(probe, "_compare_logprobs", lambda *given: (made.append(1), compare(*given)))
    for seed, expected in ((0, 1), (0, 1), (1, 2)):
        if len(made) != expected or not (tmp_path / "model").exists():
            save_model(plain_model("llama", seed), word_tokenizer(), tmp_path / "model")
        load_causal_lm(tmp_path / "model")
        assert len(made) == expected
    monkeypatch.setenv("LODESTAR_CACHE", "/proc/nowhere")
    load_causal_lm(tmp_path / "model")
    assert len(made) == 3
