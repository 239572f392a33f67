"""A judge behind our own gateway and behind PolicyService: one answer, and the one that its log-probs give by hand."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lodestar.client import PolicyClient
from lodestar.labelling.judge import LanguageJudge, written
from lodestar.labelling.options import JudgeOptions
from lodestar.labelling.port import Asked, Question
from lodestar.local.tiny import llama
from lodestar.model.weights import save_model
from lodestar.records import ChatMessage, Scored

importlib.import_module("openai")  # takes seconds, which are no test's
WORDS = ["<pad>", "<end>", "<unk>", "A", "B", "red", "blue", "green", "sky", "what", "color", "is", "it", "Reply"]
QUESTIONS = [
    Question("q0", "what color is it", ("red " * 14, "blue sky " * 7)),
    Question("q1", "is it blue", ("it is green " * 5, "B what " * 8)),
    Question("q2", "sky", ("sky " * 12, "what color " * 7)),
]


@pytest.fixture(scope="module")
def judge_service(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights that say A or B, and hardly anything else."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    model = llama(hidden=32, layers=2, vocab=len(WORDS), eos_bias=2.0, seed=5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 6 if "proj" in name else 1
        model.model.embed_tokens.weight[:, 1:] *= 10
        for name in ("A", "B"):
            model.lm_head.weight[WORDS.index(name)] *= 20
            model.lm_head.weight[WORDS.index(name), 0] = 20 * model.lm_head.weight[1, 0].abs()
    folder = tmp_path_factory.mktemp("judge") / "model"
    save_model(model, tokenizer, folder)
    return start_service("policy", model=str(folder))


@pytest.fixture(scope="module")
def judge_door(start_gateway: Any, judge_service: Any) -> Iterator[Any]:
    with start_gateway(judge_service.address) as door:
        yield door


def labels(folder: Path, servers: dict[str, tuple[str, ...]] | None = None, **options: Any) -> list[float]:
    told = JudgeOptions.model_validate({"max_tokens": 1, **options})
    judge = LanguageJudge(Asked(0, None, folder, judge=told, cache=folder, servers=servers or {}))
    rows = judge.label(QUESTIONS, lambda _: None)
    assert judge.figures["unread"] == []
    assert judge.figures["prompt_tokens"] > 0
    assert judge.figures["completion_tokens"] == 2 * len(QUESTIONS)
    return [row.verdict[0].label for row in rows]  # type: ignore[index]


def by_hand(client: PolicyClient, question: Question) -> float:
    """(p₁ + p₂)/2 from the log-probs of both letters after both orders."""
    chances = []
    for replies in (question.replies, question.replies[::-1]):
        shown = written(question, (replies[0], replies[1]), JudgeOptions().question)
        ids = client.tokenize([ChatMessage("user", f"{shown}\nAnswer with the letter alone, A or B.")])
        a, b = (
            client.logprobs([Scored((*ids, WORDS.index(name)), len(ids))]).sequences[0].logprobs[0]
            for name in ("A", "B")
        )
        chances.append(math.exp(a) / (math.exp(a) + math.exp(b)))
    return (chances[0] + 1 - chances[1]) / 2


def test_gateway_and_policy_service_give_the_label_of_the_models_own_log_probs(
    judge_door: Any, judge_service: Any, tmp_path: Path
) -> None:
    with PolicyClient(judge_service.address) as client:
        exact = [by_hand(client, question) for question in QUESTIONS]
    assert len({round(label, 3) for label in exact}) == 3, "a judge that cannot tell its questions apart tests nothing"
    url = {"url": f"{judge_door.url}/v1", "name": "tiny"}
    assert labels(tmp_path / "url", **url) == pytest.approx(exact, abs=1e-5)
    assert labels(tmp_path / "address", address=judge_service.address) == pytest.approx(exact, abs=1e-5)
    assert labels(tmp_path / "run", {"policy": (judge_service.address,)}) == pytest.approx(exact, abs=1e-5)


def test_plain_text_is_asked_alike_by_both(judge_door: Any, judge_service: Any, tmp_path: Path) -> None:
    url = {"url": f"{judge_door.url}/v1", "name": "tiny"}
    by_url = labels(tmp_path / "url", form="text", **url)
    assert by_url == pytest.approx(labels(tmp_path / "there", form="text", address=judge_service.address), abs=1e-5)
