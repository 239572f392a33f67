"""The reward server's scores and refusals, over a socket, from a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lodestar.client import RewardClient
from lodestar.errors import InvalidArgument, NonFinite, TokenizerMismatch
from lodestar.records import ScoreItem

PAIRS = [("what color is the sky ?", "the sky is blue"), ("is it ?", "it is not red"), ("the grass", "green")]


@pytest.fixture(scope="module")
def client(reward_service: Any) -> RewardClient:
    with RewardClient(reward_service.address) as client:
        yield client


def plain_hugging_face(folder: Path, token_ids: list[int]) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([token_ids])).logits[0, 0]) + model.config.score_bias


def tokens(folder: Path, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    reply = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return tokenizer(prompt)["input_ids"], reply


def test_scores_of_text_equal_those_of_plain_hugging_face(client: RewardClient, tiny_models: Any) -> None:
    reply = client.score(PAIRS)
    rows = [tokens(tiny_models.reward, *pair) for pair in PAIRS]
    expected = [plain_hugging_face(tiny_models.reward, prompt + reply) for prompt, reply in rows]
    assert [score.score for score in reply.scores] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(expected)
    assert [score.mean for score in reply.scores] == [score.score for score in reply.scores]
    assert {score.standard_deviation for score in reply.scores} == {0.0}


def test_tokens_and_text_of_one_reply_score_alike_and_a_cut_off_reply_has_no_eos(
    client: RewardClient, tiny_models: Any
) -> None:
    prompt, reply = tokens(tiny_models.reward, *PAIRS[0])
    hash_ = client.describe().model.tokenizer_hash
    whole, cut = client.score(
        [ScoreItem(tuple(prompt), tuple(reply)), ScoreItem(tuple(prompt), tuple(reply[:-1]))], tokenizer_hash=hash_
    ).scores
    text_whole, text_cut = client.score([PAIRS[0], ScoreItem(*PAIRS[0], cut_off=True)]).scores
    assert (whole, cut) == (text_whole, text_cut)
    assert whole != cut


def test_a_reply_says_which_model_and_tokenizer_scored(client: RewardClient, tiny_models: Any) -> None:
    description = client.describe()
    assert client.score(PAIRS).model == description.model
    assert description.model.name == str(tiny_models.reward)
    assert len(description.model.version.digest) == len(description.model.tokenizer_hash) == 64
    assert (description.context_tokens, description.ensemble_size) == (64, 1)


@pytest.mark.parametrize(
    ("items", "field", "words"),
    [
        ([], "items", "at least one"),
        ([PAIRS[0]] * 4097, "items", "at most 4096"),
        ([PAIRS[0], ScoreItem("the sky", "", cut_off=True)], "items[1].completion_text", "empty"),
        ([("sky " * 62, "blue")], "items[0]", "context holds 64"),
        ([("sky", "blue " * 70)], "items[0].completion_text", "context holds 64"),
        ([ScoreItem((), (5,))], "items[0].prompt_tokens", "empty"),
        ([ScoreItem((5,), ())], "items[0].completion_tokens", "empty"),
        ([ScoreItem((5,), (6,)), ScoreItem((5,), (9999,))], "items[1].completion_tokens", "vocabulary ends at"),
        ([ScoreItem("the sky", (5,))], "items[0]", "mixes text and tokens"),
    ],
)
def test_bad_items_are_refused_by_name(client: RewardClient, items: list[Any], field: str, words: str) -> None:
    hash_ = client.describe().model.tokenizer_hash
    with pytest.raises(InvalidArgument, match=words) as refusal:
        client.score(items, tokenizer_hash=hash_)
    assert refusal.value.field == field


def test_tokens_need_the_hash_of_their_tokenizer(client: RewardClient) -> None:
    item = ScoreItem((5,), (6,))
    with pytest.raises(InvalidArgument) as missing:
        client.score([item])
    assert missing.value.field == "tokenizer_hash"
    with pytest.raises(TokenizerMismatch, match="use the tokenizer saved beside the served model"):
        client.score([item], tokenizer_hash="f" * 64)


def test_a_broken_score_fails_its_own_call_and_the_server_lives_on(
    start_service: Any, tiny_models: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_models.reward.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    red = AutoTokenizer.from_pretrained(str(broken)).convert_tokens_to_ids("red")
    weights["model.embed_tokens.weight"][red] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    # A long wait: the calls below share one batch.
    service = start_service("reward", model=str(broken), section={"batch_wait_ms": 300})
    outcomes: dict[str, Any] = {}
    with RewardClient(service.address) as client:

        def ask(word: str) -> None:
            try:
                outcomes[word] = client.score([("the sky is", word)]).scores[0].score
            except NonFinite as error:
                outcomes[word] = error

        threads = [threading.Thread(target=ask, args=(word,)) for word in ("red", "blue")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert isinstance(outcomes["red"], NonFinite)
        assert "weights are broken" in str(outcomes["red"])
        assert isinstance(outcomes["blue"], float)
        assert client.score([("the sky is", "green")]).scores
    service.child.stop(5)
