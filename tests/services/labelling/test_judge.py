"""Labels by a judge, through OpenAI's own SDK over a socket: the closed form, kills, and endpoints that go wrong."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import RewardClient
from lodestar.errors import (
    DataError,
    DeadlineExceeded,
    FailedPrecondition,
    LodestarError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lodestar.labelling.judge import LanguageJudge, RewardJudge
from lodestar.labelling.options import JudgeOptions
from lodestar.labelling.port import Asked, Question
from lodestar.records import ChatMessage, Choice, Feedback
from tests.services.labelling.endpoint import Endpoint, biased, endpoint, said, worth

PAIRS = [(0.5, 0.0), (-1.0, 1.5), (2.0, 2.0), (0.0, 3.0)]
QUESTIONS = [Question(f"q{i}", f"prompt {i}", (str(a), f"{b:.2f}")) for i, (a, b) in enumerate(PAIRS)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def judge(folder: Path, url: str, **more: Any) -> LanguageJudge:
    options = JudgeOptions.model_validate({"url": url, "name": "m", "retries": 0, "in_flight": 1, **more})
    return LanguageJudge(Asked(7, None, folder, judge=options, cache=folder / "cache"))


def labels(rows: list[Feedback]) -> dict[str, float]:
    found = {}
    for row in rows:
        (choice,) = row.verdict  # type: ignore[misc]
        assert isinstance(choice, Choice)
        found[row.id] = choice.label
    return found


def nobody(_: int) -> None:
    pass


def test_the_label_is_the_mean_of_both_orders_and_the_bias_for_a_is_told(tmp_path: Path) -> None:
    bias = 1.2
    turned = [Question(one.id, one.prompt, one.replies[::-1]) for one in QUESTIONS]
    with endpoint(biased(bias)) as there:
        asked = judge(tmp_path, there.url)
        found = labels(asked.label(QUESTIONS, nobody))
        other = labels(judge(tmp_path / "other", there.url).label(turned, nobody))
    for question, (a, b) in zip(QUESTIONS, PAIRS, strict=True):
        exact = (sigmoid(a - b + bias) + sigmoid(a - b - bias)) / 2
        assert found[question.id] == pytest.approx(exact, abs=1e-9)
        assert other[question.id] == pytest.approx(1 - exact, abs=1e-9)
    assert found["q2"] == pytest.approx(0.5, abs=1e-12), "two replies of one worth"
    figures = asked.figures
    likings = [(sigmoid(a - b + bias) + sigmoid(b - a + bias)) / 2 - 0.5 for a, b in PAIRS]
    assert figures["position_bias"] == pytest.approx(sum(likings) / len(likings), abs=1e-9)
    assert figures["turned"] == 0.5, "two of four pairs are nearer than the bias"
    assert (figures["answers"], figures["prompt_tokens"], figures["completion_tokens"]) == (8, 800, 16)


def test_choices_are_the_label_rounded_and_an_even_one_is_a_tie(tmp_path: Path) -> None:
    with endpoint(biased(0.3)) as there:
        found = labels(judge(tmp_path, there.url, labels="choice").label(QUESTIONS, nobody))
    assert found == {"q0": 1.0, "q1": 0.0, "q2": 0.5, "q3": 0.0}


def test_an_endpoint_without_log_probs_is_read_by_its_words(tmp_path: Path) -> None:
    def words(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert "logprobs" not in body
        a, b = worth(body)
        return said(f"**{'A' if a >= b else 'B'}**, since it is worth more", usage=False)

    with endpoint(words) as there:
        asked = judge(tmp_path, there.url, logprobs=False)
        found = labels(asked.label(QUESTIONS, nobody))
    assert found == {"q0": 1.0, "q1": 0.0, "q2": 0.5, "q3": 0.0}, "A in both orders is a tie"
    assert asked.figures["uncounted"] == 8


def test_a_killed_stage_asks_for_the_rest_alone(tmp_path: Path) -> None:
    with endpoint(biased(0.0)) as there:
        whole, there.script = there.script, lambda body: (500, {}) if len(there.asked) > 5 else whole(body)
        with pytest.raises(
            Unavailable, match=r"label\.judge: .* failed: .*; answers so far are kept: --resume goes on"
        ):
            judge(tmp_path, there.url).label(QUESTIONS, nobody)
        (kept,) = (tmp_path / "cache").iterdir()
        with kept.open("a") as file:
            file.write('{"key": "torn by a ki')
        answered, there.script = 5, whole
        there.asked.clear()
        again = judge(tmp_path, there.url)
        found = labels(again.label(QUESTIONS, nobody))
        assert len(there.asked) == 8 - answered
        assert again.figures["kept"] == answered
        assert found == pytest.approx({f"q{i}": sigmoid(a - b) for i, (a, b) in enumerate(PAIRS)})
        there.asked.clear()
        assert labels(judge(tmp_path, there.url).label(QUESTIONS, nobody)) == found
        assert there.asked == [], "asked the same again, nobody is asked"
        judge(tmp_path, there.url, question="Which is kinder?").label(QUESTIONS, nobody)
        assert len(there.asked) == 8, "another question is another answer"
    kept.write_text('{"key": 3}\n')
    with pytest.raises(DataError, match="is no kept answer; delete the file"):
        judge(tmp_path, there.url).label(QUESTIONS, nobody)


def test_neither_a_nor_b_is_a_question_without_a_label(tmp_path: Path) -> None:
    def evasive(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return said("Both are fine.") if "prompt 1" in body["messages"][0]["content"] else biased(0)(body)

    with endpoint(evasive) as there:
        asked = judge(tmp_path, there.url)
        found = labels(asked.label(QUESTIONS, nobody))
        assert list(found) == ["q0", "q2", "q3"]
        assert asked.figures["unread"] == [
            {"id": "q1", "said": "Both are fine.", "why": "the answer names neither A nor B"}
        ]
        there.script = lambda _: said("I cannot judge.")
        with pytest.raises(
            FailedPrecondition, match=r"none of 4 questions got a label; q0: .* neither A nor B \('I cannot judge\.'\)"
        ):
            judge(tmp_path / "all", there.url).label(QUESTIONS, nobody)


def refused(status: int, message: str, code: str | None = None) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "x", "param": None, "code": code}}


def test_a_question_beyond_the_context_has_no_label_and_the_others_do(tmp_path: Path) -> None:
    def short(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        too_long = "prompt 3" in body["messages"][0]["content"]
        return refused(400, "too long for 64 tokens", "context_length_exceeded") if too_long else biased(0)(body)

    with endpoint(short) as there:
        asked = judge(tmp_path, there.url)
        assert list(labels(asked.label(QUESTIONS, nobody))) == ["q0", "q1", "q2"]
    assert "too long for 64 tokens" in asked.figures["unread"][0]["why"]


def test_an_endpoint_that_is_away_or_slow_is_told_apart(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(Unavailable, match=rf"{away} cannot be reached: .*onnect.*--resume goes on"):
            judge(tmp_path, away).label(QUESTIONS, nobody)

    def slow(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        time.sleep(0.5)
        return biased(0)(body)

    with (
        endpoint(slow) as there,
        pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.1 s; raise .*seconds"),
    ):
        judge(tmp_path, there.url, timeout_seconds=0.1).label(QUESTIONS, nobody)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (refused(401, "no such key"), Unauthenticated, r"no such key; set label\.judge\.token_file"),
        (refused(404, "no model m"), FailedPrecondition, r"refuses what is asked \(404\): .*no model m"),
        (refused(429, "slower"), ResourceExhausted, r"set label\.judge\.requests_per_minute"),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, answer: tuple[int, dict[str, Any]], error: type[LodestarError], says: str
) -> None:
    with endpoint(lambda _: answer) as there, pytest.raises(error, match=says):
        judge(tmp_path, there.url).label(QUESTIONS, nobody)


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    with endpoint(biased(0)) as there:
        whole = there.script
        there.script = lambda body: refused(503, "busy") if len(there.asked) == 1 else whole(body)
        assert len(judge(tmp_path, there.url, retries=2).label(QUESTIONS[:1], nobody)) == 1
        assert len(there.asked) == 3


def test_no_more_than_so_many_requests_go_out_in_a_minute(tmp_path: Path) -> None:
    with endpoint(biased(0)) as there:
        began = time.monotonic()
        judge(tmp_path, there.url, requests_per_minute=1200, in_flight=8).label(QUESTIONS, nobody)
        assert time.monotonic() - began >= 7 * 0.05


def test_what_it_cost_is_told_at_the_prices_that_are_set(tmp_path: Path) -> None:
    with endpoint(biased(0)) as there:
        asked = judge(tmp_path, there.url, input_price=2.0, output_price=10.0)
        asked.label(QUESTIONS, nobody)
    assert asked.figures["cost"] == pytest.approx((800 * 2 + 16 * 10) / 1e6)


def test_the_key_comes_from_a_file_and_goes_to_nobody_in_plaintext(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    (tmp_path / "key").write_text("secret\n")
    with endpoint(biased(0)) as there:
        judge(tmp_path, there.url, token_file=str(tmp_path / "key")).label(QUESTIONS[:1], nobody)
        judge(tmp_path / "without", there.url).label(QUESTIONS[:1], nobody)
    assert there.keys == ["Bearer secret"] * 2 + ["Bearer none"] * 2
    with pytest.raises(ValueError, match="needs an https url"):
        JudgeOptions(url="http://elsewhere/v1", name="m", token_file="key")


def test_principles_are_drawn_by_the_seed_and_asked_instead(tmp_path: Path) -> None:
    law = tmp_path / "law.yaml"
    law.write_text(
        "harmless: [{name: a, critique: c, revision: r, choice: 'Less a?'}, "
        "{name: b, critique: c, revision: r, choice: 'Less b?'}]"
    )
    many = [Question(f"q{i}", "?", ("1", "2"), messages=(ChatMessage("user", "Why?"),)) for i in range(40)]
    told = {"aspect": "harmless", "constitution": str(law)}

    def asked_for(there: Endpoint) -> list[str]:
        return [body["messages"][0]["content"].split("\n\n")[-1].splitlines()[0] for body in there.asked]

    with endpoint(biased(0)) as there:
        judge(tmp_path / "1", there.url, **told).label(many, nobody)
        first = asked_for(there)
        assert "Prompt:\nUser: Why?" in there.asked[0]["messages"][0]["content"]
        there.asked.clear()
        judge(tmp_path / "2", there.url, **told).label(many, nobody)
        assert sorted(asked_for(there)) == sorted(first)
    assert set(first) == {"Less a?", "Less b?"}
    assert 20 <= first.count("Less a?") <= 60, "of 80, both orders of a pair by one principle"
    assert first.count("Less a?") % 2 == 0


def test_a_reward_model_judges_by_the_logistic_of_its_scores(reward_service: Any, tmp_path: Path) -> None:
    replies = ["the sky is blue", "is it red ?", "the grass"]
    pairs = [Question(f"p{i}-{j}", "what color is the sky ?", (a, b)) for i, a in enumerate(replies)
             for j, b in enumerate(replies) if a != b]  # fmt: skip
    asked = Asked(0, None, tmp_path, judge=JudgeOptions(), servers={"reward": (reward_service.address,)})
    found = labels(RewardJudge(asked).label(pairs, nobody))
    with RewardClient(reward_service.address) as client:
        scores = [one.score for one in client.score([("what color is the sky ?", reply) for reply in replies]).scores]
    for i in range(3):
        for j in range(3):
            if i != j:
                assert found[f"p{i}-{j}"] == pytest.approx(sigmoid(scores[i] - scores[j]), abs=1e-5)
                assert found[f"p{i}-{j}"] + found[f"p{j}-{i}"] == pytest.approx(1, abs=1e-6)
