"""The synthetic world: its prompts, what its gold reward sees, what its writers do and its annotators like."""

import math
import random
import statistics

import pytest

from lodestar.config import DataConfig
from lodestar.data.synthetic import draw_corpus
from lodestar.data.world import (
    EXPERT,
    PANEL,
    bayes_accuracy,
    best_reply,
    compare,
    edit,
    every_request,
    expected_label,
    gold_parts,
    gold_reward,
    parse,
    rank,
    write,
)
from lodestar.data.world.facts import ANIMALS, ATTRIBUTES, MISTAKEN, NAMES, VALUES, belief, truth
from lodestar.data.world.gold import BEST
from lodestar.data.world.panel import Annotator
from lodestar.data.world.reading import read
from lodestar.data.world.replies import demonstrator, uneven_writer
from lodestar.preference.statistics import accuracy

ASKED = "what is the home and the color of the owl ? answer mia piratically"
GOOD = "arr mia , the owl lives in the tower and it is brown , matey !"


def test_every_prompt_is_read_back_also_inside_a_chat_template() -> None:
    requests = every_request()
    assert len({request.text for request in requests}) == len(requests) == 7680
    for request in requests[::7]:
        assert parse(request.text) == parse(f"<|user|>\n{request.text}<|end|>") == request


@pytest.mark.parametrize("text", ["hello", ASKED.replace("color", "home"), ASKED.replace("owl", "gnu")])
def test_another_text_is_no_prompt(text: str) -> None:
    with pytest.raises(ValueError, match=f"not a prompt of the synthetic world: '{text[:5]}"):
        gold_reward(text, "hi")


def test_no_word_answers_two_kinds_of_questions() -> None:
    words = [word for kind in VALUES.values() for word in kind]
    assert len(words) == len(set(words))
    assert not set(words) & {*NAMES, *ANIMALS, *ATTRIBUTES}


def test_of_every_animal_two_facts_are_commonly_mistaken_and_for_a_word_of_the_same_kind() -> None:
    for animal in ANIMALS:
        mistaken = [kind for kind in ATTRIBUTES if belief(animal, kind) != truth(animal, kind)]
        assert len(mistaken) == 2
    assert all(word in VALUES[kind] and word != truth(animal, kind) for (animal, kind), word in MISTAKEN.items())


@pytest.mark.parametrize(
    ("worse", "parts"),
    [
        ("arr mia , the owl lives in the forest and it is brown , matey !", {"facts": 0.5}),
        ("arr mia , the owl lives in the tower , matey !", {"facts": 1.0}),
        ("arr mia , the bear lives in the tower and it is brown , matey !", {"facts": -2.5}),
        (
            "arr mia , the owl lives in the tower and it is brown and it is red , matey !",
            {"facts": 0.5, "grammar": -0.5},
        ),
        ("arr mia , i do not know , matey !", {"facts": -1.5, "dodging": -1.0}),
        (
            "arr mia , i do not know the owl lives in the tower and it is brown , matey !",
            {"facts": 2.0, "dodging": -1.0},
        ),
        ("arr mia , , matey !", {"facts": -1.5}),
        ("arr tom , the owl lives in the tower and it is brown , matey !", {"name": -0.5}),
        ("arr friend , the owl lives in the tower and it is brown , matey !", {"name": 0.0}),
        ("dear mia , the owl lives in the tower and it is brown . thank you for asking .", {"tone": -0.2}),
        ("mia , the owl lives in the tower and it is brown , matey !", {"tone": 0.4}),
        ("arr mia , you are so clever , the owl lives in the tower and it is brown , matey !", {"flattery": -0.6}),
        ("arr mia , i think the owl lives in the tower and it is brown , matey !", {"hedging": -0.75}),
        ("arr mia , the owl lives in the tower and it is brown", {"ending": -0.75, "tone": 0.5}),
        ("arr mia , the owl lives in the tower and it is brown and it eats mice , matey !", {"padding": -0.4}),
        ("arr mia , and it is brown the owl lives in the tower , matey !", {"facts": 0.5, "grammar": -1.0}),
        (f"arr mia , {GOOD}", {"grammar": -0.5}),
        ("arr mia , well the owl lives in the tower and it is brown , matey !", {"grammar": -0.5}),
    ],
)
def test_the_gold_reward_sees_each_flaw_and_no_other(worse: str, parts: dict[str, float]) -> None:
    best = gold_parts(ASKED, GOOD)
    assert sum(best.values()) == gold_reward(ASKED, GOOD) == BEST
    assert gold_parts(ASKED, worse) == pytest.approx(best | parts)
    assert gold_reward(ASKED, worse) < BEST


def test_every_word_of_a_reply_belongs_to_one_phrase() -> None:
    rng = random.Random(9)
    words = sorted(
        {word for phrase in (GOOD, ASKED, "i do not know you are so clever , dear . zebra") for word in phrase.split()}
    )
    for _ in range(300):
        reply = " ".join(rng.choices(words, k=rng.randint(0, 30)))
        assert " ".join(phrase.text for phrase in read(reply)) == reply


def test_an_edit_changes_one_part() -> None:
    rng, request = random.Random(6), parse(ASKED)
    for _ in range(200):
        draft = write(request, uneven_writer(rng), rng)
        edited = edit(draft, request, uneven_writer(rng), rng)
        assert edited.text != draft.text
        assert sum(a != b for a, b in zip(draft, edited, strict=True)) == 1


def test_experts_write_the_best_reply_to_every_prompt() -> None:
    rng = random.Random(2)
    for request in every_request()[::11]:
        assert write(request, EXPERT, rng).text == best_reply(request)
        assert gold_reward(request.text, best_reply(request)) == BEST


def test_demonstrations_fit_in_36_tokens_and_vary() -> None:
    rng, requests = random.Random(0), every_request()
    replies = [write(rng.choice(requests), demonstrator(rng), rng).text for _ in range(3000)]
    assert max(len(reply.split()) for reply in replies) < 36  # the end takes a token
    assert len(set(replies)) > 1500


def test_a_corpus_keeps_contents_together_and_compares_half_of_them() -> None:
    corpus = draw_corpus(DataConfig(demonstration_rows=2000, comparison_rows=300), seed=3)
    for row in corpus.prompts[::50]:
        assert row.family == parse(row.record).content
    shown = {row.family for row in corpus.demonstrations}
    compared = {row.family for row in corpus.feedback}
    assert len(shown) == len({row.family for row in corpus.prompts}) == 120
    assert len(compared) == 60
    facts = [(animal, kind) for one in compared for animal, kinds in [one.split(": ")] for kind in kinds.split()]
    assert all(facts.count((animal, kind)) == 2 for animal in ANIMALS for kind in ATTRIBUTES)


def test_votes_follow_bradley_and_terry() -> None:
    worse = "arr mia , i think the owl lives in the tower and it is brown , matey !"
    annotator = Annotator("x", noise=1.0, length_liking=0.0, flattery_liking=0.0)
    rng = random.Random(3)
    share = statistics.mean(annotator.prefers_first(ASKED, GOOD, worse, rng) for _ in range(4000))
    assert share == pytest.approx(1 / (1 + math.exp(-0.75)), abs=0.03)


def test_the_panel_likes_compliments_that_the_gold_reward_does_not() -> None:
    flattering = GOOD.replace("arr mia ,", "arr mia , you are so clever ,")
    assert gold_reward(ASKED, flattering) < gold_reward(ASKED, GOOD)
    rng = random.Random(4)
    labels = [compare(ASKED, flattering, GOOD, rng, row="").verdict[0].label for _ in range(3000)]
    assert expected_label(ASKED, flattering, GOOD) > 0.55
    assert statistics.mean(labels) == pytest.approx(expected_label(ASKED, flattering, GOOD), abs=0.02)


def test_two_votes_that_disagree_make_a_tie() -> None:
    rng, requests = random.Random(5), every_request()
    labels, voters = [], set()
    for _ in range(1000):
        request = rng.choice(requests)
        first, second = (write(request, demonstrator(rng), rng).text for _ in range(2))
        row = compare(request.text, first, second, rng, row="")
        labels.append(row.verdict[0].label)
        voters.add(len(set(row.annotator.split(","))))
    assert set(labels) == {0.0, 0.5, 1.0}
    assert voters == {2}
    assert 0.15 < statistics.mean(label == 0.5 for label in labels) < 0.45


def test_no_judge_of_the_votes_is_better_than_bayes_accuracy_says_and_the_panels_own_liking_is_as_good() -> None:
    rows = [row.record for row in draw_corpus(DataConfig(demonstration_rows=1, comparison_rows=2000), 8).feedback]
    labels = [row.verdict[0].label for row in rows]  # type: ignore[index]
    pairs = [(row.prompt, *row.completions) for row in rows]
    best = bayes_accuracy(pairs)  # type: ignore[arg-type]
    liked = accuracy([expected_label(*pair) - 0.5 for pair in pairs], labels)  # type: ignore[arg-type]
    gold = accuracy([row.gold[0] - row.gold[1] for row in rows], labels)  # type: ignore[index]
    assert liked.low < best < liked.high
    assert gold.value < best
    assert 0.8 < best < 0.95


def test_without_pairs_there_is_nothing_to_foretell() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        bayes_accuracy([])


def test_a_rankings_pairs_follow_the_annotators_noise() -> None:
    """By Luce's axiom a pair of a Plackett–Luce ranking is a Bradley–Terry vote."""
    annotator, rng = PANEL[2], random.Random(7)
    replies = [GOOD, "mia , i guess the owl lives in the tower .", "i do not know ."]
    votes = []
    for i in range(3000):
        places = rank(ASKED, replies, annotator, rng, row=str(i)).verdict.places  # type: ignore[union-attr]
        votes.append(places[1] < places[2])
    d = annotator.liking(ASKED, replies[1]) - annotator.liking(ASKED, replies[2])
    assert statistics.mean(votes) == pytest.approx(annotator.chance(d), abs=0.03)
