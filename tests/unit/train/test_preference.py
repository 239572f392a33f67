"""Reward training on feedback of every kind: what the objective sums, what is saved, what resumes."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from lodestar.config import DataConfig, ModelConfig, RewardTrainingConfig
from lodestar.data.files import DataFiles, read_feedback, write_feedback
from lodestar.data.prepare import prepare
from lodestar.data.tokenizer import train_tokenizer
from lodestar.errors import ConfigError, InvalidArgument, NonFinite
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.loading import load_tokenizer, new_causal_lm, save_model
from lodestar.preference.losses import bradley_terry
from lodestar.preference.statistics import spearman
from lodestar.records import Choice, Feedback, Ranking, Ratings
from lodestar.rewards.combine import over_ensemble
from lodestar.train import RewardTraining
from lodestar.train.preference import PreferenceObjective, Trainee, bootstrap, rating_scales, score_all
from lodestar.train.reward import judge
from tests.unit.model import zoo

TINY = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 2, "context_tokens": 96}
BRIEF = {"epochs": 1, "batch_tokens": 2048, "evaluations_per_epoch": 1, "learning_rate": 5e-3, "centering": 0.0}


MODEL = ModelConfig.model_validate({"architecture": TINY})


def _config(**reward: Any) -> RewardTrainingConfig:
    return RewardTrainingConfig.model_validate(BRIEF | reward)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataFiles:
    """A run's data: 200 pairs of the synthetic world; and beside them a language model that knows nothing."""
    files = DataFiles(tmp_path_factory.mktemp("run"))
    data = {"demonstration_rows": 60, "comparison_rows": 200, "prompt_rows": 20, "max_prompt_tokens": 32}
    prepare(DataConfig.model_validate(data), MODEL, files, seed=0)
    tokenizer = load_tokenizer(files.tokenizer)
    save_model(new_causal_lm(MODEL.architecture, tokenizer, 0), tokenizer, files.folder / "start")
    return files


def _train(made: DataFiles, output: Path, *, state: Path | None = None, **reward: Any) -> None:
    training = RewardTraining(
        _config(**reward),
        MODEL,
        feedback=[made.folder / "feedback"],
        demonstrations=made.folder / "demonstrations",
        start=made.folder / "start",
        state=state or output.with_name(f"{output.name}-state"),
        seed=0,
    )
    training.run(output)


def _trainee(
    files: DataFiles, training: RewardTrainingConfig, rows: list[Feedback]
) -> tuple[Trainee, PreferenceObjective]:
    tokenizer = load_tokenizer(files.tokenizer)
    model = scalar_from_causal_lm(new_causal_lm(MODEL.architecture, tokenizer, 0), tokenizer, 0, training.heads)
    trainee = Trainee(model, training, rating_scales(rows, training.aspects))
    return trainee, PreferenceObjective(rows, rows, tokenizer, training, MODEL, 0)


def _scores(trainee: Trainee, objective: PreferenceObjective, training: RewardTrainingConfig) -> torch.Tensor:
    return score_all(trainee.model, [group.rows for group in objective._groups], training, MODEL)


PAIR = Feedback("tell me", ("red fox", "the owl"), (Choice(0, 1, 1.0, 2.0),), annotator="ada")
FOUR = Feedback("answer", ("a fox", "the owl", "red", "cave"), Ranking(((2,), (0, 3), (1,))), annotator="carl")
LIKERT = Feedback(
    "answer",
    ("a fox", "owl"),
    Ratings({"helpful": (4.0, None), "brief": (0.0, 1.0)}, {"helpful": (1, 5), "brief": (0, 1)}),
)


def test_the_loss_is_the_mean_over_prompts_of_the_mean_over_pairs(made: DataFiles) -> None:
    config = _config()
    trainee, objective = _trainee(made, config, [PAIR, FOUR])
    s = _scores(trainee, objective, config)[:, 0]
    labels = {(0, 1): 1.0, (0, 2): 0.0, (0, 3): 0.5, (1, 2): 0.0, (1, 3): 0.0, (2, 3): 1.0}
    four = [float(bradley_terry(s[2 + a] - s[2 + b], torch.tensor(label))) for (a, b), label in labels.items()]
    expected = (float(bradley_terry(s[0] - s[1], torch.tensor(1.0))) + sum(four) / 6) / 2
    assert float(objective.loss(trainee, [0, 1]).detach()) == pytest.approx(expected, abs=1e-5)


def test_likes_without_a_rival_teach_the_score_itself(made: DataFiles) -> None:
    config = _config()
    scale = {"approval": (0.0, 1.0)}
    rows = [
        Feedback("tell me", (text,), Ratings({"approval": (v,)}, scale)) for text, v in (("fox", 1.0), ("owl", 0.0))
    ]
    trainee, objective = _trainee(made, config, [*rows, PAIR])
    s = _scores(trainee, objective, config)[:, 0]
    pair = bradley_terry(s[2] - s[3], torch.tensor(1.0))
    expected = (torch.nn.functional.softplus(-s[0]) + torch.nn.functional.softplus(s[1]) + pair) / 3
    assert float(objective.loss(trainee, [0, 1, 2]).detach()) == pytest.approx(float(expected), abs=1e-5)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective.loss(trainee, [0, 1]).backward()
        optimizer.step()
    liked, disliked = _scores(trainee, objective, config)[:2, 0].tolist()
    assert liked > 0 > disliked
    assert objective.evaluate(trainee)["held_out_accuracy"] >= 2 / 3


def test_a_margin_grows_with_strength(made: DataFiles) -> None:
    config = _config(margin=0.5)
    trainee, objective = _trainee(made, config, [PAIR])
    s = _scores(trainee, objective, config)[:, 0]
    expected = bradley_terry(s[:1] - s[1:], torch.tensor([1.0]), 1.0)
    assert float(objective.loss(trainee, [0]).detach()) == pytest.approx(float(expected), abs=1e-5)


def test_centring_is_of_every_pair(made: DataFiles) -> None:
    plain, centred = (_trainee(made, _config(centering=c), [FOUR]) for c in (0.0, 0.5))
    s = _scores(*plain, _config())[:, 0]
    expected = 0.5 * sum(float((s[i] + s[j]) ** 2) for i in range(4) for j in range(i)) / 6
    losses = [float(objective.loss(trainee, [0]).detach()) for trainee, objective in (plain, centred)]
    assert losses[1] - losses[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["davidson", "plackett_luce"])
def test_ties_and_rankings_have_losses_of_their_own(made: DataFiles, loss: str) -> None:
    trainee, objective = _trainee(made, _config(loss=loss), [PAIR, FOUR])
    value = objective.loss(trainee, [0, 1])
    value.backward()
    assert torch.isfinite(value)
    assert (trainee.log_ties is not None and trainee.log_ties.grad is not None) == (loss == "davidson")
    other = _trainee(made, _config(), [PAIR, FOUR])
    assert float(value.detach()) != pytest.approx(float(other[1].loss(other[0], [0, 1]).detach()), abs=1e-3)


@pytest.mark.parametrize("loss", ["ordinal", "regression"])
def test_unrated_completions_teach_an_aspect_nothing(made: DataFiles, loss: str) -> None:
    config = _config(aspects=["helpful", "brief"], rating_loss=loss)
    trainee, objective = _trainee(made, config, [LIKERT])
    assert trainee.model.score.out_features == 3
    objective.loss(trainee, [0]).backward()
    gradient = trainee.model.score.weight.grad
    assert (gradient.abs().sum(1) > 0).all()
    assert ("helpful" in trainee.cutpoints) == (loss == "ordinal")


def test_an_annotators_weight_moves_the_mean(made: DataFiles) -> None:
    alone = [float(o.loss(t, [0]).detach()) for t, o in (_trainee(made, _config(), [row]) for row in (PAIR, FOUR))]
    trainee, objective = _trainee(made, _config(annotators={"ada": 3.0}), [PAIR, FOUR])
    assert float(objective.loss(trainee, [0, 1]).detach()) == pytest.approx((3 * alone[0] + alone[1]) / 4, abs=1e-5)


def test_members_of_an_ensemble_see_bootstraps_of_their_own() -> None:
    counts = torch.tensor([bootstrap(0, row, 4) for row in range(4000)])
    assert counts.mean(0).tolist() == pytest.approx([1.0] * 4, abs=0.06)
    assert counts.var(0).tolist() == pytest.approx([1.0] * 4, abs=0.1)
    assert abs(float(torch.corrcoef(counts.T)[0, 1])) < 0.05
    assert bootstrap(0, 7, 4) == bootstrap(0, 7, 4)
    assert bootstrap(0, 7, 1) == (1.0,)


def test_aspects_that_nobody_rated_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"helpfull has no rating in the data, which rate brief, helpful"):
        rating_scales([LIKERT], ["helpfull"])
    other = Feedback("x", ("a",), Ratings({"helpful": (1.0,)}, {"helpful": (0, 1)}))
    with pytest.raises(ConfigError, match="helpful has the scales"):
        rating_scales([LIKERT, other], ["helpful"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "davidson", "margin": 1.0}, "margin is for loss bradley_terry, not davidson"),
        ({"aspects": ["a", "a"]}, "aspects must have different names"),
        ({"learning_curve": [1.0]}, "learning_curve holds shares between 0 and 1"),
        ({"start": "a", "path": "b"}, "set one of them"),
        ({"start": "a", "ensemble": 2}, "start has one head: use ensemble_of models"),
        ({"annotators": {"ada": -1.0}}, "annotators' weights must be 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _config(**options)


def test_the_objective_learns_to_rank(made: DataFiles) -> None:
    """Whatever the loss: the better words of a toy preference come out on top."""
    rng = random.Random(0)
    words = ("fox", "owl", "bear", "crab")
    rows = []
    for _ in range(60):
        texts = [" ".join(rng.choice(words) for _ in range(4)) for _ in range(4)]
        order = sorted(range(4), key=lambda i: -texts[i].count("fox"))
        rows.append(Feedback("answer", tuple(texts), Ranking(tuple((i,) for i in order))))
    for loss in ("bradley_terry", "plackett_luce"):
        trainee, objective = _trainee(made, _config(loss=loss, score_tokens="all"), rows)
        optimizer = torch.optim.Adam(trainee.parameters(), lr=5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            objective.loss(trainee, range(60)).backward()
            optimizer.step()
        with torch.no_grad():
            assert objective.evaluate(trainee)["held_out_accuracy"] > 0.75


def test_an_ensemble_of_heads_is_one_model_with_named_labels(made: DataFiles, tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    _train(made, reward, ensemble=3, ensemble_of="heads", learning_curve=[0.5])
    model = AutoModelForSequenceClassification.from_pretrained(reward)
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "reward-1", 1: "reward-2", 2: "reward-3"}
    assert len(model.config.score_bias) == 3
    card = json.loads((reward / "card.json").read_text())
    assert card["ensemble"]["mean_standard_deviation"] > 0
    rows = [point["rows"] for point in card["learning_curve"]]
    assert rows[0] == round(rows[1] / 2)


def test_an_ensemble_of_models_has_a_folder_each_and_trains_none_twice(made: DataFiles, tmp_path: Path) -> None:
    reward, state = tmp_path / "reward", tmp_path / "state"
    _train(made, reward, state=state, ensemble=2, ensemble_of="models")
    weights = (reward / "member-2" / "model.safetensors").read_bytes()
    assert weights != (reward / "model.safetensors").read_bytes()
    changed = (state / "member-2" / "model.safetensors").stat().st_mtime_ns
    _train(made, reward, state=state, ensemble=2, ensemble_of="models")
    assert (state / "member-2" / "model.safetensors").stat().st_mtime_ns == changed
    card = json.loads((reward / "card.json").read_text())
    assert card["ensemble"]["mean_standard_deviation"] > 0
    (other,) = card["training"]["other_members"]
    assert (other["stopped"], other["cut_short"]) == ("epochs", None)


def test_the_cards_spread_of_an_ensemble_is_the_one_that_is_served(made: DataFiles) -> None:
    tokenizer = load_tokenizer(made.tokenizer)
    language = new_causal_lm(MODEL.architecture, tokenizer, seed=0)
    models = [scalar_from_causal_lm(language, tokenizer, seed) for seed in range(3)]
    rows = read_feedback(made.feedback("evaluation"))[:4]
    alone = [judge([model], tokenizer, rows, _config(), MODEL).scores for model in models]
    served = [over_ensemble(members, {}, offset=0.0) for members in zip(*alone, strict=True)]
    found = judge(models, tokenizer, rows, _config(), MODEL)
    assert found.deviations == pytest.approx([one.deviation for one in served], rel=1e-4)
    assert found.scores == pytest.approx([one.value for one in served], rel=1e-4, abs=1e-5)


def test_scores_that_are_no_numbers_make_no_card(made: DataFiles) -> None:
    tokenizer = load_tokenizer(made.tokenizer)
    broken = scalar_from_causal_lm(new_causal_lm(MODEL.architecture, tokenizer, seed=0), tokenizer, 0)
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(NonFinite, match="a score that is NaN or infinite"):
        judge([broken], tokenizer, read_feedback(made.feedback("evaluation"))[:2], _config(), MODEL)


def test_a_reward_model_that_the_clock_cut_short_says_so_on_its_card(made: DataFiles, tmp_path: Path) -> None:
    _train(made, tmp_path / "reward", ensemble=2, ensemble_of="models", max_seconds=1e-3)
    training = json.loads((tmp_path / "reward" / "card.json").read_text())["training"]
    for one in (training, *training["other_members"]):
        assert one["cut_short"] == {"done": one["steps"], "total": one["planned"]}
        assert one["steps"] < one["planned"]


def test_a_reward_model_trains_further_from_another(made: DataFiles, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _train(made, first, score_tokens="all")
    ready = json.loads((first / "card.json").read_text())["training"]["history"][-1]["held_out_loss"]
    _train(made, second, score_tokens="all", start=str(first), learning_rate=1e-5)
    history = json.loads((second / "card.json").read_text())["training"]["history"]
    assert history[0]["held_out_loss"] <= ready
    with pytest.raises(ConfigError, match=r"reward\.score_tokens: must be all"):
        _train(made, second, start=str(first))
    other = train_tokenizer(MODEL.tokenizer, ["two other words"] * 3, context_tokens=96)
    other.save_pretrained(first)
    with pytest.raises(ConfigError, match=r"reward\.start: .* has another tokenizer"):
        _train(made, second, score_tokens="all", start=str(first))


def test_feedback_of_several_rounds_is_one_data_set(made: DataFiles, tmp_path: Path) -> None:
    def rows(folders: int) -> int:
        training = RewardTraining(
            _config(),
            MODEL,
            feedback=[made.folder / "feedback"] * folders,
            demonstrations=None,
            start=made.folder / "start",
            state=tmp_path / f"state-{folders}",
            seed=0,
        )
        training.run(tmp_path / f"reward-{folders}")
        card = json.loads((tmp_path / f"reward-{folders}" / "card.json").read_text())
        assert card["offset"] is None, "no demonstrations, no offset"
        return int(card["data"]["comparisons.train"])

    assert rows(2) == 2 * rows(1) > 100


def test_likert_ratings_train_beside_comparisons(made: DataFiles, tmp_path: Path) -> None:
    rated = DataFiles(tmp_path)
    for split in ("train", "held_out", "evaluation"):
        rows = [
            Feedback(
                row.prompt,
                row.completions,
                Ratings({"quality": tuple(float(min(5, max(1, 3 + g))) for g in row.gold or ())}, {"quality": (1, 5)}),
            )
            for row in read_feedback(made.feedback(split))
        ]
        write_feedback(rated.feedback(split), rows)
    training = RewardTraining(
        _config(aspects=["quality"]),
        MODEL,
        feedback=[tmp_path / "feedback"],
        demonstrations=made.folder / "demonstrations",
        start=made.folder / "start",
        state=tmp_path / "state",
        seed=0,
    )
    training.run(tmp_path / "reward")
    card = json.loads((tmp_path / "reward" / "card.json").read_text())
    assert card["aspects"]["quality"]["n"] >= 30
    assert -1 <= card["aspects"]["quality"]["spearman"] <= 1
    assert {"temperature", "temperature_low", "temperature_high"} <= card["calibration"].keys()


@pytest.mark.parametrize("loss", ["ordinal", "regression"])
def test_an_aspects_head_learns_its_ratings(made: DataFiles, loss: str) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choice(("fox", "owl", "bear")) for _ in range(4)) for _ in range(80)]
    scale = {"foxes": (0.0, 4.0)}
    rows = [Feedback("answer", (text,), Ratings({"foxes": (float(text.count("fox")),)}, scale)) for text in texts]
    config = _config(aspects=["foxes"], rating_loss=loss, score_tokens="all")
    trainee, objective = _trainee(made, config, rows)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective.loss(trainee, range(80)).backward()
        optimizer.step()
    found = _scores(trainee, objective, config)[:, 1].tolist()
    assert spearman(found, [float(text.count("fox")) for text in texts]) > 0.8


@pytest.mark.parametrize("split", ["train", "held_out", "evaluation"])
def test_rows_beyond_the_context_are_refused_before_anything_is_trained(
    split: str, made: DataFiles, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(made.tokenizer)
    config = zoo.tiny_config("gpt2", vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    save_model(zoo.tiny_model(config), tokenizer, tmp_path / "start")  # positions are learned: they end at 64
    feedback = shutil.copytree(made.folder / "feedback", tmp_path / "feedback")
    path = feedback / f"{split}.jsonl"
    long = Feedback("tell me", ("red fox " * 40, "the owl"), (Choice(0, 1, 1.0, 2.0),))
    write_feedback(path, [*read_feedback(path), long])
    training = RewardTraining(
        _config(), MODEL, feedback=[feedback], demonstrations=None, start=tmp_path / "start", state=tmp_path, seed=0
    )
    with pytest.raises(InvalidArgument, match=r"reward's rows: 1 rows have more tokens, up to \d+, than .* of 64"):
        training.run(tmp_path / "reward")
    assert not list(tmp_path.glob("*.pt"))
