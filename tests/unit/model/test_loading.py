"""Loading, making and saving models, and what is refused on the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    MambaConfig,
)

from lodestar.config.data import ArchitectureConfig, LoraConfig
from lodestar.errors import ModelError
from lodestar.model.loading import (
    apply_lora,
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    named_tensors,
    new_causal_lm,
    save_model,
    scalar_from_causal_lm,
    tensor_digests,
    tokenizer_hash,
    weights_digest,
)
from lodestar.model.logits import sampled_ids
from lodestar.model.packed import PackedBatch, response_logprobs, sequence_scores
from tests.unit.model.worlds import CONFIGS, PROMPTS, SEQUENCES, VOCAB, plain_model, word_tokenizer

SMALL = ArchitectureConfig(hidden_size=32, intermediate_size=48, layers=2, context_tokens=64)
BATCH = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_of_a_loaded_model_are_those_of_the_plain_forward(name: str, tmp_path: Path) -> None:
    plain = plain_model(name)
    save_model(plain, word_tokenizer(), tmp_path / "model")
    ours, entropy = response_logprobs(load_causal_lm(tmp_path / "model"), BATCH, temperature=0.7, entropy=True)
    expected, entropies = [], []
    for sequence, prompt in zip(SEQUENCES, PROMPTS, strict=True):
        with torch.no_grad():
            logp = (plain(torch.tensor([sequence])).logits[0] / 0.7).log_softmax(-1)
        expected += [logp[t - 1, sequence[t]] for t in range(prompt, len(sequence))]
        entropies += [-(logp[t - 1].exp() * logp[t - 1]).sum() for t in range(prompt, len(sequence))]
    assert torch.allclose(ours, torch.stack(expected), atol=1e-5)
    assert entropy is not None
    assert torch.allclose(entropy, torch.stack(entropies), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_16_bits_is_not_taken_for_another_computation(seed: int, tmp_path: Path) -> None:
    save_model(plain_model("llama", seed).bfloat16(), word_tokenizer(), tmp_path / "model")
    assert load_causal_lm(tmp_path / "model", dtype="bfloat16").dtype == torch.bfloat16


def test_a_saved_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    model = new_causal_lm(SMALL, tokenizer, seed=0)
    save_model(model, tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logp = plain(torch.tensor([SEQUENCES[0]])).logits[0].log_softmax(-1)
    ours, _ = response_logprobs(model, PackedBatch.pack(SEQUENCES[:1], [8], device="cpu"), temperature=1.0)
    assert float(ours.detach()) == pytest.approx(float(logp[7, SEQUENCES[0][8]]), abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_scalar_model_keeps_head_and_bias_on_disk(name: str, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    save_model(plain_model(name), tokenizer, tmp_path / "lm")
    scalar = scalar_from_causal_lm(load_causal_lm(tmp_path / "lm"), tokenizer, seed=3)
    with torch.no_grad():
        scalar.score.bias.fill_(0.3)
    save_model(scalar, tokenizer, tmp_path / "scalar")
    loaded = load_scalar_model(tmp_path / "scalar")
    assert tensor_digests(loaded) == tensor_digests(scalar)
    assert torch.equal(sequence_scores(loaded, BATCH), sequence_scores(scalar, BATCH))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scalar").eval()
    with torch.no_grad():
        without_bias = float(plain(torch.tensor([SEQUENCES[0]])).logits)
    assert float(sequence_scores(loaded, BATCH)[0].detach()) == pytest.approx(without_bias + 0.3, abs=1e-5)


def test_a_new_models_weights_are_as_wide_as_its_size_asks() -> None:
    """0.02 at every size kept the demo's model of hidden size 96 from ever copying a name of its prompt."""
    for hidden in (96, 512):
        model = new_causal_lm(ArchitectureConfig(hidden_size=hidden, layers=1), word_tokenizer(), seed=0)
        assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(
            (2 / (5 * hidden)) ** 0.5, rel=0.05
        )


def test_a_new_head_has_the_papers_spread_and_leaves_the_language_model_alone() -> None:
    model = new_causal_lm(ArchitectureConfig(hidden_size=512, layers=1), word_tokenizer(), seed=0)
    before = tensor_digests(model)
    scalar = scalar_from_causal_lm(model, word_tokenizer(), seed=0)
    assert float(scalar.score.weight.detach().std()) == pytest.approx(513**-0.5, rel=0.1)
    assert scalar.score.bias.tolist() == [0.0]
    with torch.no_grad():
        scalar.model.embed_tokens.weight.zero_()
    assert tensor_digests(model) == before


def test_equal_seeds_make_equal_models_and_leave_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    digests = [weights_digest(tensor_digests(new_causal_lm(SMALL, word_tokenizer(), seed))) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_train_and_are_merged_on_save(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    model = new_causal_lm(SMALL, tokenizer, seed=0)
    names = set(named_tensors(model))
    adapted = apply_lora(model, LoraConfig(rank=2))
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora" in name for name in trainable)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert set(named_tensors(adapted)) == names
    save_model(adapted, tokenizer, tmp_path / "merged")
    ours, _ = response_logprobs(adapted, BATCH, temperature=1.0)
    merged, _ = response_logprobs(load_causal_lm(tmp_path / "merged"), BATCH, temperature=1.0)
    assert torch.allclose(ours, merged, atol=1e-5)


def test_saving_over_a_model_replaces_it_and_a_failure_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = word_tokenizer()
    first, second, third = (new_causal_lm(SMALL, tokenizer, seed) for seed in range(3))
    save_model(first, tokenizer, tmp_path / "model")
    save_model(second, tokenizer, tmp_path / "model")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(third, tokenizer, tmp_path / "model")
    assert tensor_digests(load_causal_lm(tmp_path / "model")) == tensor_digests(second)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": '{"model_type": "llama"}'}, "no safetensors there"),
        ({"config.json": '{"model_type": "llama"}', "pytorch_model.bin": ""}, "pickled weights are not read"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        load_causal_lm(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such model folder"):
        load_causal_lm(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["runs/policy", "~/models/policy", "../policy", "a/b/c"])
def test_what_can_only_be_a_folder_is_never_asked_of_a_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such model folder"):
        load_causal_lm(path)


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    save_model(plain_model("llama"), word_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match="no scalar head"):
        load_scalar_model(tmp_path / "model")


IDS = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, **IDS), "0 of 2 layers"),
        (BertConfig(**SIZES, intermediate_size=48), "not a decoder-only model"),
        (
            BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **IDS),
            "adds ALiBi biases",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_architecture_that_our_attention_cannot_serve_is_refused(
    config: object, message: str, tmp_path: Path
) -> None:
    save_model(AutoModelForCausalLM.from_config(config), word_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        load_causal_lm(tmp_path / "model")


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="hidden_size 30"):
        new_causal_lm(ArchitectureConfig(hidden_size=30, heads=4), word_tokenizer(), seed=0)


# --- tokenizers ----------------------------------------------------------------------------------------------------


def test_a_tokenizers_hash_survives_saving_and_differs_for_another_vocabulary(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(tokenizer)
    other = word_tokenizer()
    other.add_tokens(["new"])
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


@pytest.mark.parametrize("problem", [{"pad_token": None}, {"pad_token": "t1"}])
def test_an_unused_special_token_becomes_pad_and_is_reported(
    problem: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = word_tokenizer(**problem)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<reserved_0>", special=True)]})
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "<reserved_0>"
    assert "<reserved_0> is PAD from now on" in caplog.text


@pytest.mark.parametrize("problem", [{"pad_token": None}, {"pad_token": "t1"}])
def test_pad_without_a_free_token_gets_an_id_and_a_row_of_its_own(problem: dict[str, str], tmp_path: Path) -> None:
    plain = plain_model("gpt2")
    save_model(plain, word_tokenizer(**problem), tmp_path / "model")
    tokenizer, model = load_tokenizer(tmp_path / "model"), load_causal_lm(tmp_path / "model")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (VOCAB, 1)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 1
    assert sampled_ids(model) == VOCAB
    ours, _ = response_logprobs(model, BATCH, temperature=1.0)
    plain.set_attn_implementation("lodestar")
    expected, _ = response_logprobs(plain, BATCH, temperature=1.0)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(word_tokenizer(pad_token=None))
    scalar = scalar_from_causal_lm(model, tokenizer, seed=0)
    save_model(scalar, tokenizer, tmp_path / "scalar")
    assert tensor_digests(load_scalar_model(tmp_path / "scalar")) == tensor_digests(scalar)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    word_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no EOS"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
