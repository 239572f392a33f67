"""Types of language models, one by one: right everywhere or refused with a reason, never wrong, never a crash."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lodestar.errors import InvalidArgument, ModelError
from lodestar.model.attention import NAME
from lodestar.model.context import check_lengths
from lodestar.model.loading import load_causal_lm, save_model
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.model.probe import check_causal_lm
from tests.unit.model import zoo
from tests.unit.model.served import PAGE, Verdict, judge
from tests.unit.model.worlds import words

RIGHT = [
    "llama", "mistral", "qwen2_moe", "phimoe", "gemma3_text", "granite", "cohere", "nanochat", "deepseek_v3",
    "nemotron", "minicpm3", "gpt2", "gemma2", "gpt_oss",
]  # fmt: skip
"""Windows in the mask alone, caps, scales up, down and before the head, other value sizes, lost keywords, sinks."""
REFUSED = {
    "bloom": "adds ALiBi biases to its scores in code of its own",
    "mamba": "0 of 4 layers of MambaForCausalLM",
    "falcon": "keeps its own attention code",
    "doge": "applies its attention mask in code of its own",
    "llama4_text": "attends over chunks",
    "bart": "not a decoder-only model",
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some types' own code warns
        yield


@pytest.mark.parametrize("model_type", RIGHT)
def test_a_served_type_is_right_in_training_generation_and_scores(model_type: str) -> None:
    assert judge(model_type) == Verdict(model_type, judge_name(model_type))


@pytest.mark.parametrize("model_type", REFUSED)
def test_another_type_is_refused_with_its_name_and_the_reason(model_type: str) -> None:
    verdict = judge(model_type)
    assert REFUSED[model_type] in verdict.trains
    assert verdict.name in verdict.trains


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("model_type", sorted(set(zoo.types()) - zoo.TOO_LARGE))
def test_every_type_is_right_or_refused_as_the_page_says(model_type: str) -> None:
    verdict = judge(model_type)
    marks = ["refused" if says else "yes" for says in (verdict.trains, verdict.serves, verdict.scores)]
    assert f"| {model_type} | {verdict.name} | {' | '.join(marks)} |" in PAGE.read_text("utf-8").splitlines()


def judge_name(model_type: str) -> str:
    return type(zoo.tiny_model(zoo.tiny_config(model_type))).__name__


# --- what a configuration can turn on ------------------------------------------------------------------------------
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_attention_to_what_follows_is_refused(model_type: str) -> None:
    verdict = judge(model_type, is_causal=False)
    assert "is_causal is false" in verdict.trains


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_no_sequence_goes_where_frequencies_would_depend_on_the_batch(rope_type: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 24}
    config = zoo.tiny_config(
        "llama", rope_parameters=rope, max_position_embeddings=96 if rope_type == "longrope" else 24
    )
    save_model(zoo.tiny_model(config), words(zoo.VOCAB), tmp_path)
    model = load_causal_lm(tmp_path)
    with pytest.raises(InvalidArgument, match="one holds 25 tokens, and this model's context ends at 24"):
        response_logprobs(model, PackedBatch.pack([[4] * 3, [5] * 25], [1, 1], device="cpu"), temperature=1.0)
    response_logprobs(model, PackedBatch.pack([[4] * 3, [5] * 24], [1, 1], device="cpu"), temperature=1.0)


def test_a_cap_is_found_however_small_the_logits_are(tmp_path: Path) -> None:
    config = zoo.tiny_config("gemma3_text", final_logit_softcapping=30.0)
    model = zoo.tiny_model(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    model.set_attn_implementation(NAME)
    check_causal_lm(model, "a model")
    model.config.final_logit_softcapping, capped = None, model.forward

    def forward(*args: Any, **options: Any) -> Any:
        output = capped(*args, **options)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    model.forward = forward
    with pytest.raises(ModelError, match="more of its LM head's product than a scale and a soft cap"):
        check_causal_lm(model, "a model")


def test_rows_beyond_the_context_are_refused_or_said_before_a_stage(caplog: pytest.LogCaptureFixture) -> None:
    learned, rotary = zoo.tiny_config("gpt2"), zoo.tiny_config("llama")
    check_lengths(learned, [64, 3], "sft's rows")
    with pytest.raises(
        InvalidArgument, match=r"sft's rows: 2 rows have more tokens, up to 70, than the .* context of 64"
    ):
        check_lengths(learned, [64, 65, 70], "sft's rows")
    check_lengths(rotary, [65], "sft's rows")
    assert "1 rows have more tokens, up to 65" in caplog.text
