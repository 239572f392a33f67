"""Pretraining, SFT and reward training end to end on tiny models, and what from_pretrained makes of their output."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lodestar.config import (
    ModelConfig,
    PolicyConfig,
    RewardTrainingConfig,
    RunConfig,
    TokenizerConfig,
    TrainingConfig,
    load_config,
)
from lodestar.crew.inline import run_inline
from lodestar.data.files import read_comparisons, read_demonstrations, read_feedback, read_prompts
from lodestar.data.rows import encode_prompts, encode_rows
from lodestar.data.tokenizer import train_tokenizer
from lodestar.data.world import gold_reward
from lodestar.data.world.replies import DODGES
from lodestar.engine.engine import Engine
from lodestar.errors import ConfigError, ModelError
from lodestar.evaluation import win_rate
from lodestar.model.loading import load_causal_lm, load_scalar_model, load_tokenizer
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.folder import RunFolder
from lodestar.records import SamplingParams, WeightVersion
from lodestar.train import train_sft
from lodestar.train.fit import Fit
from lodestar.train.language import LanguageObjective
from lodestar.train.preference import PreferenceObjective, encode_groups, score_all

DEMO = Path(__file__).parents[3] / "lodestar" / "local" / "demo.yaml"
TINY = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "context_tokens": 96}
BRIEF = {"epochs": 1, "batch_tokens": 1024, "evaluations_per_epoch": 2, "learning_rate": 5e-3}


def _config(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": "t",
        "data": {"demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 50, "max_prompt_tokens": 32},
        "model": {"architecture": TINY},
        "sft": BRIEF,
        "reward_model": BRIEF,
    }
    return RunConfig.model_validate(base | sections)


def _until(stage: str, config: RunConfig, root: Path) -> RunFolder:
    return run_inline(config, root=root, wanted=Wanted(until=stage))


def _path(folder: RunFolder, artifact: str) -> Path:
    return folder.store.path(artifact)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run after pretraining, SFT and reward training."""
    return _until("reward", _config(pretrain=BRIEF), tmp_path_factory.mktemp("run"))


def test_what_was_trained_loads_with_plain_transformers(trained: RunFolder) -> None:
    for path in (_path(trained, "pretrain/policy"), _path(trained, "sft/policy")):
        AutoModelForCausalLM.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(_path(trained, "reward/reward"))
    assert model.config.num_labels == 1
    assert AutoTokenizer.from_pretrained(_path(trained, "sft/policy")).pad_token == "<pad>"
    assert not list(trained.root.glob("**/*.pt"))


def test_each_stage_starts_from_the_one_before(trained: RunFolder) -> None:
    rows = read_demonstrations(_path(trained, "data/demonstrations") / "held_out.jsonl")
    encoded = encode_rows(
        load_tokenizer(_path(trained, "sft/policy")), [row.prompt for row in rows], [row.completion for row in rows]
    )
    objective = LanguageObjective(encoded, encoded, 2048, config=ModelConfig())
    with torch.no_grad():
        before, after = (
            objective.evaluate(load_causal_lm(path))
            for path in (_path(trained, "pretrain/policy"), _path(trained, "sft/policy"))
        )
    assert after["held_out_loss"] < before["held_out_loss"] < 5


def test_sft_learns_completions_and_not_prompts(trained: RunFolder) -> None:
    tokenizer, model = load_tokenizer(_path(trained, "sft/policy")), load_causal_lm(_path(trained, "sft/policy"))
    (row,) = encode_rows(tokenizer, ["answer mia politely : what color is the fox ?"], ["dear mia , the fox is red ."])
    loss = float(LanguageObjective([row], [row], 2048, config=ModelConfig()).loss(model, [0]).detach())
    ids = torch.tensor([row.token_ids])
    reference = AutoModelForCausalLM.from_pretrained(_path(trained, "sft/policy"))
    logprobs = reference(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert loss == pytest.approx(-float(logprobs[row.prompt_tokens - 1 :].detach().mean()), abs=1e-4)


def test_the_card_lies_beside_the_reward_model(trained: RunFolder) -> None:
    card = json.loads((_path(trained, "reward/reward") / "card.json").read_text())
    assert card["pairs"] == len(read_comparisons(_path(trained, "data/feedback") / "evaluation.jsonl"))
    assert card["training"]["history"][0]["step"] == 0
    assert set(card["baselines"]) == {"longer_is_better", "bag_of_words"}
    assert 0 <= card["accuracy"]["low"] <= card["accuracy"]["value"] <= card["accuracy"]["high"] <= 1


def test_the_preference_loss_is_bradley_terry_with_half_a_vote_for_ties(trained: RunFolder) -> None:
    rows = read_feedback(_path(trained, "data/feedback") / "held_out.jsonl")
    training = RewardTrainingConfig.model_validate(BRIEF | {"centering": 0.0})
    tokenizer, model = (
        load_tokenizer(_path(trained, "reward/reward")),
        load_scalar_model(_path(trained, "reward/reward")),
    )
    objective = PreferenceObjective(rows, rows, tokenizer, training, ModelConfig(), 0)
    scores_P2 = score_all(model, encode_groups(tokenizer, rows), training, ModelConfig()).view(-1, 2)
    label_P = torch.tensor([row.verdict[0].label for row in rows])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores_P2[:, 0] - scores_P2[:, 1], label_P)
    with torch.no_grad():
        assert float(objective.loss(model, range(len(rows)))) == pytest.approx(float(expected), abs=1e-5)
        assert objective.evaluate(model)["held_out_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert 0 < (label_P == 0.5).sum() < len(rows)


def test_a_reward_model_from_elsewhere_is_judged_and_not_trained(trained: RunFolder, tmp_path: Path) -> None:
    folder = _until("reward", _config(reward_model={"path": str(_path(trained, "reward/reward"))}), tmp_path / "a")
    assert json.loads((_path(folder, "reward/figures") / "fit.json").read_text()) is None
    card = json.loads((_path(folder, "reward/reward") / "card.json").read_text())
    assert "training" not in card
    ours, theirs = (load_scalar_model(_path(f, "reward/reward")).state_dict() for f in (folder, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ModelError, match="no scalar head"):
        _until("reward", _config(reward_model={"path": str(_path(trained, "sft/policy"))}), tmp_path / "b")


def test_an_interrupted_stage_leaves_its_state_and_goes_on(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Watch:
        def __init__(self, lives: int) -> None:
            self.lives, self.steps = lives, 0

        def start(self, stage: str, total: int) -> None: ...

        def metrics(self, values: Any) -> None: ...

        def say(self, text: str) -> None: ...

        def advance(self, amount: int = 1) -> None:
            self.steps += 1
            if self.steps == self.lives:
                raise Killed

    data, state = _until("data", _config(), tmp_path / "run"), tmp_path / "state.pt"

    def train(watch: Watch) -> Fit:
        return train_sft(
            TrainingConfig.model_validate(BRIEF | {"epochs": 2}),
            _config().model,
            demonstrations=_path(data, "data/demonstrations"),
            start=None,
            tokenizer=_path(data, "data/tokenizer"),
            output=tmp_path / "sft",
            state=state,
            seed=0,
            progress=watch,
        )

    with pytest.raises(Killed):
        train(Watch(lives=9))
    assert state.exists()
    result = train(second := Watch(lives=-1))
    assert second.steps < result.steps + 1
    assert (tmp_path / "sft").exists()
    assert not state.exists()


def test_bfloat16_computes_and_float32_weights_are_saved(tmp_path: Path) -> None:
    config = _config(model={"architecture": TINY, "dtype": "bfloat16"}, sft=BRIEF | {"epochs": 0.3})
    folder = _until("sft", config, tmp_path)
    result = json.loads((_path(folder, "sft/figures") / "fit.json").read_text())
    assert result["best"]["held_out_loss"] < result["history"][0]["held_out_loss"]
    assert load_causal_lm(_path(folder, "sft/policy")).dtype == torch.float32


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A random Qwen with a chat template of its kind."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["What is it? It is."], context_tokens=512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path / "qwen"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_prompts_beyond_the_models_context_are_refused_before_any_training(qwen: Path, tmp_path: Path) -> None:
    config = _config(model={"path": str(qwen)}, data={"max_prompt_tokens": 500}, ppo={"max_tokens": 64})
    with pytest.raises(ConfigError, match=r"data.max_prompt_tokens: with ppo.max_tokens it is 564, beyond the 512 tok"):
        _until("data", config, tmp_path / "run")


def test_a_hub_model_trains_with_adapters_on_dialogues(qwen: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    dialogue = "\n\nHuman: What is {0}?\n\nAssistant: {1}"
    rows = [{"chosen": dialogue.format(i, "It is."), "rejected": dialogue.format(i, "No.")} for i in range(60)]
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = _config(
        data={"kind": "hh", "root": str(source)},
        model={"path": str(qwen), "lora": {"rank": 4, "alpha": 8}},
        evaluation={"judge": "reward"},
        reward_model=BRIEF | {"epochs": 4},
    )
    folder = _until("reward", config, tmp_path / "run")
    prompt = read_demonstrations(_path(folder, "data/demonstrations") / "train.jsonl")[0].prompt
    assert prompt.startswith("<|im_start|>user\nWhat is ")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert load_tokenizer(_path(folder, "data/tokenizer")).chat_template == load_tokenizer(qwen).chat_template
    result = json.loads((_path(folder, "reward/figures") / "fit.json").read_text())
    assert result["best"]["held_out_accuracy"] == 1.0
    assert type(load_causal_lm(_path(folder, "sft/policy"))).__name__ == "Qwen2ForCausalLM"
    assert load_scalar_model(_path(folder, "reward/reward")).config.num_labels == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_constant_reply_beats_the_sft_model_of_the_demo(tmp_path: Path) -> None:
    folder = _until("sft", load_config(DEMO), tmp_path)
    tokenizer, model = (load(_path(folder, "sft/policy")) for load in (load_tokenizer, load_causal_lm))
    prompts = [prompt.text for prompt in read_prompts(_path(folder, "data/prompts") / "evaluation.jsonl")]
    engine = Engine(model, tokenizer, PolicyConfig(), version=WeightVersion("", 0, ""))
    requests = [
        engine.request(ids, SamplingParams(max_tokens=folder.plan.response_tokens, seed=i))
        for i, ids in enumerate(encode_prompts(tokenizer, prompts))
    ]
    for request in requests:
        engine.add(request)
    while any(sequence.finish_reason is None for request in requests for sequence in request.sequences):
        engine.step()
    replies = [tokenizer.decode(request.sequences[0].response, skip_special_tokens=True) for request in requests]
    baseline = [gold_reward(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    constants = (
        {reply for reply, _ in Counter(replies).most_common(150)} | {f"{dodge} ." for dodge in DODGES} | {".", ""}
    )
    wins = {reply: win_rate([gold_reward(p, reply) for p in prompts], baseline).value for reply in constants}
    assert max(wins.values()) < 0.4, max(wins, key=wins.__getitem__)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shuffled_labels_teach_a_reward_model_nothing(tmp_path: Path) -> None:
    """Pooled over three seeds: 600 pairs each give ±0.04 by chance alone."""
    rates = []
    for seed in (0, 1, 2):
        data = {"demonstration_rows": 1500, "comparison_rows": 6000, "shuffle_labels": True, "max_prompt_tokens": 32}
        config = _config(data=data, seed=seed, reward_model=BRIEF | {"learning_rate": 2e-3})
        folder = _until("reward", config, tmp_path / str(seed))
        rates.append(json.loads((_path(folder, "reward/reward") / "card.json").read_text())["accuracy"]["value"])
    assert abs(sum(rates) / len(rates) - 0.5) <= 0.06, rates
