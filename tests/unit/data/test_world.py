"""The synthetic world: what its gold reward sees, what its annotators like, and that no fixed reply games it."""

import math
import random
import statistics
from dataclasses import astuple

import pytest

from lodestar.data.world import EXPERT, PANEL, compare, edit, every_request, gold_parts, gold_reward, parse, rank, write
from lodestar.data.world.facts import DISHES, NAMES, VALUES
from lodestar.data.world.panel import Annotator
from lodestar.data.world.replies import DEMONSTRATION_MIX, DODGES, WRITERS, uneven_writer
from lodestar.evaluation import win_rate

ASKED = "answer mia like a pirate : where does the owl live ?"
GOOD = "arr mia , the owl lives in the tower , matey !"


def test_every_prompt_is_read_back_also_inside_a_chat_template() -> None:
    requests = every_request()
    assert len({request.text for request in requests}) == len(requests) > 5000
    for request in requests[::7]:
        assert parse(request.text) == parse(f"<|user|>\n{request.text}<|end|>") == request


def test_another_text_is_no_prompt() -> None:
    with pytest.raises(ValueError, match="not a prompt of the synthetic world: 'hello'"):
        gold_reward("hello", "hi")


def test_no_word_answers_two_kinds_of_questions() -> None:
    words = [word for kind in VALUES.values() for word in kind]
    assert len(words) == len(set(words))
    assert not set(words) & {*NAMES, *DISHES}


@pytest.mark.parametrize(
    ("worse", "part"),
    [
        ("arr mia , the owl lives in the pond , matey !", "facts"),
        ("arr mia , the bear lives in the tower , matey !", "facts"),
        ("arr mia , i do not know , matey !", "facts"),
        ("arr tom , the owl lives in the tower , matey !", "name"),
        ("dear mia , the owl lives in the tower . thank you for asking .", "tone"),
        ("arr mia , you are so clever , the owl lives in the tower , matey !", "flattery"),
        ("arr mia , the owl lives in the tower , matey", "ending"),
        ("arr mia , the owl lives in the tower and the owl lives in the tower , matey !", "repetition"),
        ("arr mia , tower the in lives owl the , matey !", "fluency"),
        ("arr mia , i think let me see i guess let me see the owl lives in the tower , matey !", "length"),
    ],
)
def test_the_gold_reward_sees_each_flaw(worse: str, part: str) -> None:
    assert gold_parts(ASKED, worse)[part] < gold_parts(ASKED, GOOD)[part]  # type: ignore[index]
    assert gold_reward(ASKED, worse) < gold_reward(ASKED, GOOD)


def test_a_second_true_fact_is_welcome_and_a_false_one_is_not() -> None:
    said = "arr mia , the owl lives in the tower and it is {} , matey !"
    assert gold_reward(ASKED, said.format("brown")) > gold_reward(ASKED, GOOD) > gold_reward(ASKED, said.format("red"))


def test_demonstrations_are_mediocre_with_a_wide_spread_and_fit_in_40_words() -> None:
    rng = random.Random(0)
    requests, replies, golds = every_request(), [], []
    for _ in range(3000):
        request, (writer,) = rng.choice(requests), rng.choices(WRITERS, DEMONSTRATION_MIX)
        replies.append(write(request, writer, rng).text)
        golds.append(gold_reward(request.text, replies[-1]))
    best = gold_reward(ASKED, GOOD)
    assert statistics.mean(golds) < best - 2
    assert statistics.stdev(golds) > 1.5
    assert 0.1 < statistics.mean(gold >= best - 0.2 for gold in golds) < 0.25
    assert len({round(gold, 3) for gold in golds}) > 300
    assert max(len(reply.split()) for reply in replies) <= 40


def test_no_constant_reply_beats_the_demonstrations() -> None:
    rng = random.Random(1)
    requests = rng.sample(every_request(), 300)
    baseline = [
        gold_reward(request.text, write(request, rng.choices(WRITERS, DEMONSTRATION_MIX)[0], rng).text)
        for request in requests
    ]
    constants = {write(rng.choice(requests), EXPERT, rng).text for _ in range(80)} | {f"{dodge} ." for dodge in DODGES}
    constants |= {".", "", " ".join(NAMES), "arr dear hooray .", " ".join(sorted(VALUES["color"]))}

    def wins(reply: str) -> float:
        golds = [gold_reward(request.text, reply) for request in requests]
        return statistics.mean((a > b) + 0.5 * (a == b) for a, b in zip(golds, baseline, strict=True))

    assert max(map(wins, constants)) < 0.4


def test_an_edit_changes_one_part() -> None:
    rng, request = random.Random(6), parse(ASKED)
    for _ in range(200):
        draft = write(request, uneven_writer(rng), rng)
        edited = edit(draft, request, uneven_writer(rng), rng)
        assert edited.text != draft.text
        assert sum(a != b for a, b in zip(astuple(draft), astuple(edited), strict=True)) == 1


def test_experts_beat_the_mix_of_writers() -> None:
    rng = random.Random(2)
    requests = rng.sample(every_request(), 300)
    mixed = [gold_reward(r.text, write(r, rng.choices(WRITERS, DEMONSTRATION_MIX)[0], rng).text) for r in requests]
    assert win_rate([gold_reward(r.text, write(r, EXPERT, rng).text) for r in requests], mixed).low > 0.8


def test_votes_follow_bradley_and_terry() -> None:
    worse = "arr mia , the owl lives in the tower , matey"
    annotator = Annotator("x", noise=1.0, length_liking=0.0, flattery_liking=0.0)
    gap = gold_reward(ASKED, GOOD) - gold_reward(ASKED, worse)
    rng = random.Random(3)
    share = statistics.mean(annotator.prefers_first(ASKED, GOOD, worse, rng) for _ in range(4000))
    assert share == pytest.approx(1 / (1 + 2.718281828**-gap), abs=0.03)


def test_annotators_like_compliments_that_the_gold_reward_does_not() -> None:
    flattering = "arr mia , you are so clever , the owl lives in the tower , matey !"
    dorothy = next(annotator for annotator in PANEL if annotator.name == "dorothy")
    rng = random.Random(4)
    likes = statistics.mean(dorothy.prefers_first(ASKED, flattering, GOOD, rng) for _ in range(2000))
    assert gold_reward(ASKED, flattering) < gold_reward(ASKED, GOOD)
    assert likes > 0.5


def test_two_votes_that_disagree_make_a_tie() -> None:
    rng = random.Random(5)
    rows = [compare(ASKED, GOOD, "tom , the owl lives in the tower .", rng, row=str(i)) for i in range(400)]
    assert {row.verdict[0].label for row in rows} <= {0.0, 0.5, 1.0}
    assert all(len(row.annotator.split(",")) == 2 for row in rows)
    requests = every_request()
    labels = []
    for _ in range(1000):
        request = rng.choice(requests)
        first, second = (write(request, uneven_writer(rng), rng).text for _ in range(2))
        labels.append(compare(request.text, first, second, rng, row="").verdict[0].label)
    assert 0.05 < statistics.mean(label == 0.5 for label in labels) < 0.35


def test_a_rankings_pairs_follow_the_annotators_noise() -> None:
    """By Luce's axiom a pair of a Plackett–Luce ranking is a Bradley–Terry vote."""
    annotator, rng = PANEL[2], random.Random(7)
    replies = [GOOD, "tom , the owl lives in the tower .", "i do not know ."]
    votes = []
    for i in range(3000):
        places = rank(ASKED, replies, annotator, rng, row=str(i)).verdict.places  # type: ignore[union-attr]
        votes.append(places[0] < places[1])
    d = (annotator.liking(ASKED, replies[0]) - annotator.liking(ASKED, replies[1])) / annotator.noise
    assert statistics.mean(votes) == pytest.approx(1 / (1 + math.exp(-d)), abs=0.03)
