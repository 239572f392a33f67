"""The reward server with sources: several models, models of other sorts, functions, rules, and a watched judge."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lodestar.client import RewardClient
from lodestar.config import SourceConfig
from lodestar.config.rewards import served_sources
from lodestar.data.world import every_request, gold_reward
from lodestar.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, SourceFailed, TokenizerMismatch
from lodestar.records import ChatMessage, ScoreItem
from lodestar.rewards.combine import member_scores

WORDS = ["what", "color", "is", "the", "sky", "grass", "blue", "green", "red", "?", "not"]
PAIRS = [("what color is the sky ?", "the sky is blue"), ("is it ?", "not red"), ("the grass", "green")]


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] prompt [SEP] completion [SEP], as BERT's family; no EOS, other ids than the policy's."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *reversed(WORDS)]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=48,
    )  # fmt: skip


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<eos>", "<unk>", *WORDS]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes without merges, in the form of Qwen's tokenizer."""
    names = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def save_hub_model(folder: Path, kind: str, *, labels: tuple[str, ...] = ("LABEL_0",), seed: int = 0) -> Path:
    """A folder as its author would push it to the hub: plain transformers, nothing of ours."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "vocab_size": 260, "num_labels": len(labels), "pad_token_id": 0,
        "initializer_range": 0.3, "id2label": dict(enumerate(labels)),
    }  # fmt: skip
    config: Any = {
        "llama": lambda: LlamaConfig(**sizes, num_key_value_heads=2, eos_token_id=1, bos_token_id=None),
        "qwen2": lambda: Qwen2Config(**sizes, num_key_value_heads=2, eos_token_id=1, bos_token_id=None),
        "deberta": lambda: DebertaV2Config(
            **sizes, type_vocab_size=2, relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
    }[kind]()
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make = {"llama": decoder_tokenizer, "qwen2": byte_tokenizer, "deberta": encoder_tokenizer}[kind]
    make().save_pretrained(folder)
    return folder


@torch.no_grad()
def plain(folder: Path, prompt: str, completion: str) -> list[float]:
    """What transformers alone says of one pair, without padding: one number per label."""
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.cls_token_id is not None:
        inputs = tokenizer(prompt, completion, return_tensors="pt")
    else:
        halves = [tokenizer(half)["input_ids"] for half in (prompt, completion)]
        inputs = {"input_ids": torch.tensor([[*halves[0], *halves[1], tokenizer.eos_token_id]])}
    return model(**inputs).logits[0].tolist()


@pytest.fixture
def served(start_service: Any, tiny_models: Any) -> Any:
    """``served(*sources)`` → a client of a server with these sources, in a run on the synthetic world."""
    running: list[Any] = []

    def start(*sources: dict[str, Any], **told: Any) -> tuple[RewardClient, Any]:
        watched = served_sources(tuple(map(SourceConfig.model_validate, sources)), synthetic=True)
        section = {"sources": watched, "batch_wait_ms": 1}
        service = start_service("reward", model=str(tiny_models.reward), section=section, **told)
        running.append(service)
        return RewardClient(service.address), service

    yield start
    for service in running:
        service.child.stop(5)


Served = Callable[..., tuple[RewardClient, Any]]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "deberta"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_hub_model_of_any_sort_scores_as_transformers_alone_does(
    kind: str, deterministic: bool, served: Served, tmp_path: Path
) -> None:
    folder = save_hub_model(tmp_path / kind, kind)
    client, _ = served({"name": "hub", "paths": [str(folder)]}, deterministic=deterministic)
    expected = [plain(folder, *pair)[0] for pair in PAIRS]
    assert len({round(value, 3) for value in expected}) == 3
    with client:
        assert [one.score for one in client.score(PAIRS).scores] == pytest.approx(expected, abs=1e-5)
        description = client.describe()
    assert bool(description.model.tokenizer_hash) == (kind != "deberta")
    assert description.context_tokens == (48 if kind == "deberta" else 64)


def test_a_text_pair_model_refuses_tokens_and_says_what_to_send(served: Served, tmp_path: Path) -> None:
    client, _ = served({"name": "judge", "paths": [str(save_hub_model(tmp_path / "d", "deberta"))]})
    with client:
        with pytest.raises(FailedPrecondition, match="share no tokenizer; send text"):
            client.score([ScoreItem((5,), (6,))], tokenizer_hash="f" * 64)
        with pytest.raises(InvalidArgument, match="context holds 48") as long:
            client.score([("sky " * 30, "blue " * 30)])
        assert long.value.field == "items[0]"


def test_heads_are_weighed_by_name_and_all_are_told(served: Served, tmp_path: Path) -> None:
    labels = ("helpful", "harmless", "verbose")
    folder = save_hub_model(tmp_path / "m", "qwen2", labels=labels)
    client, _ = served({"name": "hh", "paths": [str(folder)], "heads": {"helpful": 0.7, "harmless": 0.3}})
    with client:
        reply = client.score(PAIRS).scores
        assert client.describe().heads == ("hh", "gold", "hh.helpful", "hh.harmless", "hh.verbose")
    for pair, score in zip(PAIRS, reply, strict=True):
        values = plain(folder, *pair)
        assert score.score == pytest.approx(0.7 * values[0] + 0.3 * values[1], abs=1e-5)
        assert [score.heads[f"hh.{label}"] for label in labels] == pytest.approx(values, abs=1e-5)
        assert score.standard_deviation == 0


@pytest.mark.parametrize("of", ["folders", "heads"])
def test_an_ensemble_answers_with_mean_and_standard_deviation(of: str, served: Served, tmp_path: Path) -> None:
    if of == "folders":
        folders = [save_hub_model(tmp_path / str(seed), "llama", seed=seed) for seed in range(3)]
        source: dict[str, Any] = {"paths": [str(folder) for folder in folders]}
        members = [[plain(folder, *pair)[0] for folder in folders] for pair in PAIRS]
    else:
        folder = save_hub_model(tmp_path / "m", "llama", labels=("a", "b", "c"))
        source = {"paths": [str(folder)], "heads": "ensemble"}
        members = [plain(folder, *pair) for pair in PAIRS]
    client, _ = served({"name": "e", "offset": 0.25, "weight": 2.0, **source})
    with client:
        reply = client.score(PAIRS).scores
        assert client.describe().ensemble_size == 3
    values = torch.tensor(members)
    assert [one.mean for one in reply] == pytest.approx((2 * (values.mean(1) - 0.25)).tolist(), abs=1e-4)
    deviations = (2 * values.std(1, correction=0)).tolist()
    assert [one.standard_deviation for one in reply] == pytest.approx(deviations, abs=1e-4)
    assert min(deviations) > 0.01
    config = SourceConfig.model_validate({"name": "e", "offset": 0.25, "weight": 2.0, **source})
    for one, row in zip(reply, members, strict=True):
        assert member_scores(config, one.score, one.heads) == pytest.approx(
            [2 * (value - 0.25) for value in row], abs=1e-4
        )


def test_the_runs_own_ensemble_of_models_is_served_with_the_members_beside_it(
    start_service: Any, tmp_path: Path
) -> None:
    own = save_hub_model(tmp_path / "own", "llama")
    others = [save_hub_model(own / f"member-{i}", "llama", seed=i) for i in (2, 3)]
    values = [[plain(folder, *pair)[0] for folder in (own, *others)] for pair in PAIRS]
    for heads, size in ((None, 1), ("ensemble", 3)):
        service = start_service("reward", model=str(own), section={"sources": [{"name": "rm", "heads": heads}]})
        with RewardClient(service.address) as client:
            assert client.describe().ensemble_size == size
            reply = client.score(PAIRS).scores
        expected = [statistics.fmean(row[:size]) for row in values]
        assert [one.score for one in reply] == pytest.approx(expected, abs=1e-4)
        members = [one.heads.get(f"rm.member-{i}") for one in reply for i in (1, 2, 3)]
        assert members == ([None] * 9 if size == 1 else pytest.approx([one for row in values for one in row], abs=1e-4))
        service.child.stop(5)


def test_models_of_different_tokenizers_read_the_same_text(served: Served, tmp_path: Path) -> None:
    one, other = save_hub_model(tmp_path / "l", "llama"), save_hub_model(tmp_path / "d", "deberta")
    client, _ = served({"name": "one", "paths": [str(one)]}, {"name": "other", "paths": [str(other)], "weight": -0.5})
    with client:
        reply = client.score(PAIRS).scores
        assert client.describe().model.tokenizer_hash == ""
    expected = [plain(one, *pair)[0] - 0.5 * plain(other, *pair)[0] for pair in PAIRS]
    assert [score.score for score in reply] == pytest.approx(expected, abs=1e-5)


FUNCTIONS = """
def words(prompts, completions):
    return [len(text.split()) for text in completions]

def picky(prompts, completions):
    if any("red" in text for text in completions):
        raise ValueError("no red")
    return [1] * len(completions)
"""


def test_functions_and_rules_stand_beside_a_model_with_their_weights_and_metrics(
    served: Served, tiny_models: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    client, service = served(
        {"name": "reward"},
        {"name": "words", "kind": "function", "function": f"{tmp_path}/own.py:words", "weight": 0.1, "offset": 2},
        {"name": "ended", "kind": "rule", "rule": "ended", "weight": 10},
    )
    with client:
        whole, cut = client.score([PAIRS[0], ScoreItem(*PAIRS[0], cut_off=True)]).scores
        assert whole.heads["words"] == 2
        assert (whole.heads["ended"], cut.heads["ended"]) == (1, 0)
        assert whole.score == pytest.approx(whole.heads["reward"] + 0.1 * 2 + 10, abs=1e-5)
        # the same as tokens: functions get them spelled out, without BOS and EOS
        tokenizer = AutoTokenizer.from_pretrained(str(tiny_models.reward))
        prompt = tuple(tokenizer(PAIRS[0][0])["input_ids"])
        reply = tuple(tokenizer(PAIRS[0][1], add_special_tokens=False)["input_ids"])
        hash_ = client.describe().model.tokenizer_hash
        ended = ScoreItem(prompt, (*reply, tokenizer.eos_token_id))
        assert client.score([ended, ScoreItem(prompt, reply)], tokenizer_hash=hash_).scores == (whole, cut)
        with pytest.raises(TokenizerMismatch):
            client.score([ended], tokenizer_hash="f" * 64)
    page = urlopen(f"http://127.0.0.1:{service.state.metrics_port}/metrics", timeout=5).read().decode()
    assert 'lodestar_reward_source_score_count{source="words"} 4.0' in page
    assert 'lodestar_reward_source_mean{source="ended"} 0.5' in page
    assert 'lodestar_reward_source_seconds_count{source="words"} 2.0' in page


def test_a_server_without_a_model_takes_text_and_calls_the_function(served: Served, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    client, service = served({"name": "picky", "kind": "function", "function": f"{tmp_path}/own.py:picky"})
    with client:
        assert [one.score for one in client.score([PAIRS[0]]).scores] == [1.0]
        with pytest.raises(SourceFailed, match="reward source picky raised ValueError: no red"):
            client.score(PAIRS)
        with pytest.raises(InvalidArgument, match="is empty") as empty:
            client.score([ScoreItem("the sky", "", cut_off=True)])
        assert client.score([("the sky", "")]).scores[0].score == 1.0, "it ended before its first word"
        assert empty.value.field == "items[0].completion_text"
        assert client.describe().model.name == "function:picky"
        assert client.score([PAIRS[2]]).scores[0].score == 1.0
    assert "raise ValueError" in service.child.tail(40), "the log has the function's traceback"


def test_a_watched_judge_is_told_and_is_no_part_of_the_score(served: Served, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    judge = {"name": "judge", "kind": "function", "function": f"{tmp_path}/own.py:picky", "watched": True}
    client, _ = served({"name": "reward"}, judge)
    with client:
        (one,) = client.score([PAIRS[0]]).scores
        assert one.heads == {"reward": pytest.approx(one.score), "judge": 1.0}
        (red,) = client.score([PAIRS[1]]).scores
        assert set(red.heads) == {"reward"}, "a watched judge that fails costs its opinion, not the score"


def test_the_worlds_gold_is_watched_in_a_synthetic_run(reward_service: Any) -> None:
    prompt, reply = every_request()[0].text, "the owl lives in the tower ."
    with RewardClient(reward_service.address) as client:
        (one,) = client.score([(prompt, reply)]).scores
        (other,) = client.score([PAIRS[0]]).scores
    assert one.heads["gold"] == pytest.approx(gold_reward(prompt, reply), abs=1e-5)
    assert one.heads["reward"] == one.score
    assert "gold" not in other.heads, "no request of that world"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"name": "f", "kind": "function", "function": "no_such:f"}, r"reward\.sources f\.function: module no_such"),
        ({"name": "m", "heads": {"kind": 1.0}}, r"reward\.sources m\.heads: .* has no label kind; it has LABEL_0"),
        ({"name": "m", "heads": "ensemble"}, r"has one label, which is no ensemble"),
        ({"name": "m", "offset": "card"}, r"reward\.sources m\.offset: .*card\.json: no such file"),
    ],
)
def test_a_source_that_cannot_be_had_ends_the_process_with_its_name(
    source: dict[str, Any], said: str, start_service: Any, tiny_models: Any
) -> None:
    child = start_service("reward", model=str(tiny_models.reward), section={"sources": [source]}, wait=False)
    assert child.wait(20) == 2
    assert re.search(said, child.last_error()), child.last_error()


SLOW = """
import time

def slow(prompts, completions, answer=None):
    time.sleep(0.2 * len(completions))
    return [float(one == text) for one, text in zip(answer or [None] * 9, completions)]
"""


def test_a_source_that_is_slower_than_the_deadline_is_named_in_time(served: Served, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    client, _ = served({"name": "mine", "kind": "function", "function": f"{tmp_path}/own.py:slow"})
    with client:
        assert client.score([("p", "c")], timeout=5).scores[0].score == 0
        with pytest.raises(DeadlineExceeded, match="reward source mine did not judge 8 completions within the call's"):
            client.score([("p", "c")] * 8, timeout=1)


def test_functions_get_the_columns_of_text_and_of_tokens(served: Served, tiny_models: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    model = {"name": "model", "paths": [str(tiny_models.reward)], "weight": 0.0}
    client, _ = served(model, {"name": "mine", "kind": "function", "function": f"{tmp_path}/own.py:slow"})
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_models.reward))
    blue = tuple(tokenizer("blue", add_special_tokens=False)["input_ids"])
    with client:
        mine = client.describe().model.tokenizer_hash
        right = {"columns": {"answer": "blue"}}
        texts = [ScoreItem("the sky is", "blue", **right), ScoreItem("the sky is", "red", **right)]
        assert [one.heads["mine"] for one in client.score(texts).scores] == [1.0, 0.0]
        tokens = [ScoreItem((1, *blue), (*blue, tokenizer.eos_token_id), **right)]
        assert client.score(tokens, tokenizer_hash=mine).scores[0].heads["mine"] == 1.0


def test_a_model_of_another_family_reads_the_messages_in_its_own_template(served: Served, tmp_path: Path) -> None:
    folder = save_hub_model(tmp_path / "m", "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + '>' + m['content'] + '<' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a>' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    client, _ = served({"name": "hub", "paths": [str(folder)]})
    asked = (ChatMessage("user", "sky?"),)
    with client:
        (found,) = client.score([ScoreItem("[INST] sky? [/INST]", " blue", messages=asked)]).scores
        (bare,) = client.score([ScoreItem("u>sky?<a>", "blue", messages=())]).scores
    assert found.score == pytest.approx(plain(folder, "u>sky?<a>", "blue<")[0], abs=1e-5)
    assert bare.score == pytest.approx(found.score, abs=1e-5)
