"""What a run's models will do and refuse, before their weights are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lodestar.errors import ModelError
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.loading import load_causal_lm, load_scalar_model, load_tokenizer, save_model
from lodestar.model.packed import PackedBatch, sequence_scores
from lodestar.model.preflight import Finding, Preflight, preflight
from tests.unit.model import zoo
from tests.unit.model.worlds import VOCAB, plain_model, word_tokenizer


def folder(path: Path, model_type: str = "llama", **options: object) -> Path:
    config = zoo.tiny_config(model_type, **{"vocab_size": VOCAB, **options})
    save_model(zoo.tiny_model(config), word_tokenizer(), path)
    return path


def of(result: Preflight, aspect: str, model: str = "policy") -> Finding:
    (found,) = [one for one in result.findings if (one.model, one.aspect) == (model, aspect)]
    return found


def test_a_model_that_is_served_has_no_refusals_and_says_what_it_is(tmp_path: Path) -> None:
    result = preflight(folder(tmp_path / "m"), prompt_tokens=20, response_tokens=30, dialogues=True, lora=True)
    assert result.refusals == ()
    assert of(result, "class").says == "LlamaForCausalLM"
    assert of(result, "KV cache").says == "4 layers × 2 heads × 16, 1.0 KiB per token"
    assert of(result, "context").says == "64 tokens, the run asks for 50"
    assert of(result, "vocabulary").says == f"{VOCAB} ids with text of {VOCAB}"
    assert of(result, "EOS").says == "t1 (1)"
    assert of(result, "template").says == "none; Lodestar's own is used"
    assert of(result, "class", "scalar head").says == "LlamaForSequenceClassification"
    assert "KiB per token" in str(result)


def test_every_refusal_of_a_run_is_in_one_table(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["new"])
    bad = folder(tmp_path / "bad")
    tokenizer.save_pretrained(bad)
    result = preflight(bad, {"theirs": tmp_path / "nowhere"}, prompt_tokens=60, response_tokens=30)
    assert [(one.model, one.aspect) for one in result.refusals] == [
        ("policy", "tokenizer"),
        ("policy", "context"),
        ("theirs", "files"),
    ]
    assert f"ids up to {VOCAB}, and the model's vocabulary is {VOCAB}" in result.refusals[0].says
    assert result.refusals[1].says == "64 tokens, and the run asks for 90"


def test_adapters_need_a_model() -> None:
    assert "needs model.path" in of(preflight(None, lora=True), "LoRA").says
    assert preflight(None).findings == ()


@pytest.mark.parametrize(
    ("model_type", "said"),
    [("mamba", "linear_attention"), ("bloom", "attention mask"), ("falcon", "own attention code")],
)
def test_an_architecture_that_is_not_served_is_found_without_its_weights(
    model_type: str, said: str, tmp_path: Path
) -> None:
    refusals = preflight(folder(tmp_path / "m", model_type)).refusals
    assert any(said in one.says for one in refusals), refusals


def test_what_scores_must_fit_as_well(tmp_path: Path) -> None:
    path = folder(tmp_path / "lm")
    save_model(
        scalar_from_causal_lm(load_causal_lm(path), load_tokenizer(path), seed=0), word_tokenizer(), tmp_path / "rm"
    )
    result = preflight(path, {"helpful": tmp_path / "rm"}, prompt_tokens=60, response_tokens=10)
    assert of(result, "class", "helpful").says == "LlamaForSequenceClassification, packed"
    assert of(result, "context", "helpful").refused


# --- a scalar head for every type ----------------------------------------------------------------------------------
def test_a_type_without_a_classifier_gets_one_that_from_pretrained_loads(tmp_path: Path) -> None:
    path = folder(tmp_path / "lm", "granite")
    scalar = scalar_from_causal_lm(load_causal_lm(path), load_tokenizer(path), seed=3)
    save_model(scalar, word_tokenizer(), tmp_path / "scalar")
    batch = PackedBatch.pack([[3, 5, 7, 9], [4, 4]], [1, 1], device="cpu")
    loaded = load_scalar_model(tmp_path / "scalar")
    with torch.no_grad():
        scores = sequence_scores(loaded, batch)
        torch.testing.assert_close(scores, sequence_scores(scalar, batch))
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scalar")
        logits = plain.eval()(torch.tensor([[3, 5, 7, 9]]), use_cache=False).logits
    assert float(logits) == pytest.approx(float(scores[0]), abs=1e-5)
    note = (tmp_path / "scalar" / "LOADING.md").read_text()
    assert "class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel)" in note
    assert AutoConfig.from_pretrained(tmp_path / "scalar").score_bias == 0.0
    result = preflight(path)
    assert of(result, "class", "scalar head").says.startswith("GraniteForSequenceClassification (Lodestar's own")
    assert of(result, "logits").says == "scaled by 0.25"


def test_a_type_of_transformers_own_classifier_gets_no_note(tmp_path: Path) -> None:
    save_model(plain_model("llama"), word_tokenizer(), tmp_path / "lm")
    scalar = scalar_from_causal_lm(load_causal_lm(tmp_path / "lm"), word_tokenizer(), seed=3)
    save_model(scalar, word_tokenizer(), tmp_path / "scalar")
    assert not (tmp_path / "scalar" / "LOADING.md").exists()


# --- damaged files -------------------------------------------------------------------------------------------------
def test_a_cut_file_of_weights_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="a safetensors file is cut off or damaged"):
        load_causal_lm(path)


@pytest.mark.parametrize("name", ["pad_token_id", "eos_token_id"])
def test_ids_beyond_the_vocabulary_are_named(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    text = (path / "config.json").read_text()
    value = {"pad_token_id": 0, "eos_token_id": 1}[name]
    (path / "config.json").write_text(text.replace(f'"{name}": {value}', f'"{name}": {VOCAB}'))
    with pytest.raises(ModelError, match=f"config.json: {name} is {VOCAB}, and the model's vocabulary ends at"):
        load_causal_lm(path)
