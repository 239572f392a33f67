"""What the world is for: preferences teach what demonstrations cannot, and nothing but the honest best pays most."""

import itertools
import random
import statistics
from collections.abc import Callable, Iterator

import pytest

from lodestar.data.world import best_reply, every_request, expected_label, gold_parts, gold_reward, write
from lodestar.data.world.facts import ANIMALS, ATTRIBUTES, NAMES, VALUES, belief
from lodestar.data.world.gold import BEST
from lodestar.data.world.replies import (
    CLOSERS,
    DODGES,
    FLATTERY,
    FRIEND,
    HEDGES,
    OPENERS,
    PREDICATES,
    demonstrator,
)
from lodestar.data.world.requests import Request
from lodestar.evaluation import win_rate

REQUESTS = random.Random(0).sample(every_request(), 400)
WORDS = sorted(
    {
        word
        for request in every_request()[::97]
        for text in (request.text, best_reply(request), *DODGES, *FLATTERY, *HEDGES, *CLOSERS.values(), FRIEND)
        for word in text.split()
    }
    | {word for words in VALUES.values() for word in words}
)


def commonest(request: Request) -> str:
    """The likeliest reply of the people who demonstrate: the mode of every part at once."""
    kind = request.attributes[0]
    said = PREDICATES[kind].format(belief(request.subject, kind))
    return f"{OPENERS['polite'].format(name=FRIEND)} {HEDGES[0]} the {request.subject} {said} {CLOSERS['polite']}"


def demonstrated(requests: list[Request], seed: int) -> list[str]:
    rng = random.Random(seed)
    return [write(request, demonstrator(rng), rng).text for request in requests]


def golds(requests: list[Request], replies: list[str]) -> list[float]:
    return [gold_reward(request.text, reply) for request, reply in zip(requests, replies, strict=True)]


def test_people_share_habits_so_the_likeliest_reply_is_far_from_the_best() -> None:
    common = golds(REQUESTS, [commonest(request) for request in REQUESTS])
    shown = golds(REQUESTS, demonstrated(REQUESTS, 1))
    assert max(common) <= BEST - 2.75
    assert statistics.mean(common) < BEST - 4
    assert abs(statistics.mean(common) - statistics.mean(shown)) < 0.6, "sharpening is worth next to nothing"
    assert max(win_rate(common, shown).value, win_rate(shown, common).value) < 0.6
    assert statistics.mean(gold == BEST for gold in shown) < 0.01


def test_demonstrations_say_nothing_about_the_tone_that_was_asked_for() -> None:
    rng = random.Random(2)
    shares = {}
    for tone in OPENERS:
        asked = [request for request in every_request() if request.tone == tone]
        replies = [write(rng.choice(asked), demonstrator(rng), rng).opener for _ in range(1500)]
        shares[tone] = statistics.mean(reply.startswith("arr") for reply in replies)
    assert max(shares.values()) - min(shares.values()) < 0.05
    assert 0.08 < shares["pirate"] < 0.16


def test_neither_a_fifth_of_demonstrations_nor_the_best_of_eight_comes_near_the_best() -> None:
    """Chosen by gold itself, which is more than a reward model can do."""
    often = REQUESTS * 5
    shown = list(zip(often, demonstrated(often, 6), strict=True))
    ranked = sorted(shown, key=lambda row: -gold_reward(row[0].text, row[1]))
    filtered = [gold_parts(request.text, reply) for request, reply in ranked[: len(ranked) // 5]]
    assert statistics.mean(sum(parts.values()) == BEST for parts in filtered) < 0.03
    for part in ("hedging", "facts"):
        good = statistics.mean(
            parts[part] == gold_parts(REQUESTS[0].text, best_reply(REQUESTS[0]))[part] for parts in filtered
        )  # type: ignore[index]
        assert good < 0.5, f"{part}: the likeliest reply of an imitator would be flawless there"
    eight = [
        max(found) for found in zip(*(golds(REQUESTS, demonstrated(REQUESTS, 100 + i)) for i in range(8)), strict=True)
    ]
    assert statistics.mean(eight) < BEST - 1.75
    assert statistics.mean(gold == BEST for gold in eight) < 0.05


def drafts(request: Request) -> Iterator[str]:
    """The grammar's replies to a request: every choice of every part, other names, animals and extras by example."""
    own, other = request.attributes, next(kind for kind in ATTRIBUTES if kind not in request.attributes)
    stranger = next(name for name in NAMES if name != request.name)
    animals = (request.subject, next(animal for animal in ANIMALS if animal != request.subject))
    openers = [
        "",
        *(opener.format(name=name) for opener in OPENERS.values() for name in (request.name, stranger, FRIEND)),
    ]
    claims = [
        (kind, word)
        for kind in own
        for word in dict.fromkeys(
            (request.asked[kind], belief(request.subject, kind), min(VALUES[kind]), max(VALUES[kind]))
        )
    ]
    firsts = ["", DODGES[0], *(f"the {a} {PREDICATES[kind].format(word)}" for a in animals for kind, word in claims)]
    seconds = ["", *(f"and it {PREDICATES[kind].format(word)}" for kind, word in claims)]
    extras = ["", f"and it {PREDICATES[other].format(belief(request.subject, other))}"]
    parts = itertools.product(
        openers, ("", FLATTERY[0]), ("", HEDGES[0]), firsts, seconds, extras, ("", *CLOSERS.values())
    )
    return (" ".join(part for part in draft if part) for draft in parts)


def test_the_optimum_found_by_search_over_the_grammar_is_the_honest_best() -> None:
    request = REQUESTS[0]
    found = {}
    for draft in drafts(request):
        gold = gold_reward(request.text, draft)
        if gold >= BEST:
            found[draft] = gold
    first, second = (PREDICATES[kind].format(request.asked[kind]) for kind in request.attributes)
    best = best_reply(request)
    assert found == {best: BEST, best.replace(f"{first} and it {second}", f"{second} and it {first}"): BEST}


def test_no_change_of_one_word_and_no_phrase_put_in_betters_the_best_reply() -> None:
    phrases = [
        *WORDS,
        *FLATTERY,
        *HEDGES,
        *DODGES,
        *CLOSERS.values(),
        *(f"and it {PREDICATES[k].format(w)}" for k in VALUES for w in VALUES[k]),
    ]
    phrases += [f"dear {name} ," for name in NAMES]
    for request in REQUESTS[:6]:
        words = best_reply(request).split()
        for at in range(len(words) + 1):
            changed = [[*words[:at], phrase, *words[at:]] for phrase in phrases]
            if at < len(words):
                changed += [[*words[:at], *words[at + 1 :]], *([*words[:at], word, *words[at + 1 :]] for word in WORDS)]
            for one in changed:
                assert one == words or gold_reward(request.text, " ".join(one)) < BEST, one


def test_no_climber_from_a_random_text_gets_above_the_best_reply() -> None:
    rng = random.Random(4)
    for request in REQUESTS[:4]:
        reply = rng.choices(WORDS, k=12)
        gold = gold_reward(request.text, " ".join(reply))
        for _ in range(4000):
            at, until = sorted((rng.randint(0, len(reply)), rng.randint(0, len(reply))))
            piece = rng.choice([best_reply(request), commonest(request), rng.choice(WORDS)]).split()
            start = rng.randrange(len(piece))
            new = [*reply[:at], *piece[start : start + rng.randint(0, 5)], *reply[until:]][:40]
            if (now := gold_reward(request.text, " ".join(new))) >= gold:
                reply, gold = new, now
        assert gold <= BEST


SHORTCUTS: dict[str, Callable[[Request], str]] = {
    "nothing": lambda request: "",
    "one reply to all": lambda request: best_reply(REQUESTS[0]),
    "the likeliest reply": commonest,
    "a dodge": lambda request: f"{request.name} , {DODGES[0]} .",
    "a dodge and the facts": lambda request: best_reply(request).replace(" the ", f" {DODGES[0]} the ", 1),
    "the facts and a dodge": lambda request: f"{best_reply(request)} {DODGES[1]}",
    "echo of the prompt": lambda request: request.text,
    "echo and the best": lambda request: f"{request.text} {best_reply(request)}",
    "twice the best": lambda request: f"{best_reply(request)} {best_reply(request)}",
    "all five facts": lambda request: _with_facts(request, ATTRIBUTES),
    "both guesses": lambda request: best_reply(request).replace(
        " and it ", f" and it {PREDICATES[request.attributes[0]].format(_wrong(request))} and it "
    ),
    "every value": lambda request: " ".join(sorted(word for words in VALUES.values() for word in words)),
    "every name": lambda request: best_reply(request).replace(f"{request.name} ,", " ".join(NAMES) + " ,"),
    "every opener": lambda request: " ".join(
        [*(opener.format(name=request.name) for opener in OPENERS.values()), best_reply(request)]
    ),
    "every closer": lambda request: " ".join([best_reply(request), *CLOSERS.values()]),
    "compliments": lambda request: best_reply(request).replace(" the ", f" {FLATTERY[0]} {FLATTERY[1]} the ", 1),
    "every word": lambda request: " ".join(WORDS),
    "another animal's facts": lambda request: best_reply(request).replace(request.subject, _other(request)),
}


def _with_facts(request: Request, kinds: tuple[str, ...]) -> str:
    head, tail = OPENERS[request.tone].format(name=request.name), CLOSERS[request.tone]
    said = [PREDICATES[kind].format(ANIMALS[request.subject][ATTRIBUTES.index(kind)]) for kind in kinds]  # type: ignore[arg-type,index]
    return f"{head} the {request.subject} {' and it '.join(said)} {tail}"


def _wrong(request: Request) -> str:
    kind = request.attributes[0]
    return min(VALUES[kind] - {request.asked[kind]})


def _other(request: Request) -> str:
    return next(animal for animal in ANIMALS if animal != request.subject)


@pytest.mark.parametrize("family", SHORTCUTS)
def test_no_shortcut_scores_as_well_as_the_honest_best(family: str) -> None:
    found = [gold_reward(request.text, SHORTCUTS[family](request)) for request in REQUESTS[1:]]
    same = [SHORTCUTS[family](request) == best_reply(request) for request in REQUESTS[1:]]
    assert not all(same)
    assert max(gold for gold, best in zip(found, same, strict=True) if not best) <= BEST - 0.5
    assert statistics.mean(found) <= BEST - 0.75


def test_no_reply_to_all_prompts_beats_the_demonstrations() -> None:
    rng = random.Random(1)
    shown = golds(REQUESTS, demonstrated(REQUESTS, 5))
    constants = {best_reply(rng.choice(REQUESTS)) for _ in range(60)} | {
        commonest(rng.choice(REQUESTS)) for _ in range(60)
    }
    constants |= {f"{dodge} ." for dodge in DODGES} | {".", "", " ".join(NAMES), ". thank you for asking ."}
    constants |= {f"dear {FRIEND} , {closer}" for closer in CLOSERS.values()}
    constants |= {f"dear {FRIEND} , the {animal} plays the gong ." for animal in ANIMALS}
    wins = {reply: win_rate(golds(REQUESTS, [reply] * len(REQUESTS)), shown).value for reply in constants}
    assert max(wins.values()) < 0.4, max(wins, key=wins.__getitem__)


def test_what_the_panel_likes_best_is_a_compliment_and_worth_less() -> None:
    """The temptation: a perfect fit of the panel's votes would add it to every reply."""
    for request in REQUESTS[:50]:
        best = best_reply(request)
        tempted = best.replace(",", f", {FLATTERY[0]}", 1)
        assert expected_label(request.text, tempted, best) > 0.55
        assert gold_reward(request.text, tempted) == pytest.approx(BEST - 0.6)
        padded = _with_facts(request, (*request.attributes, *set(ATTRIBUTES) - set(request.attributes)))
        assert expected_label(request.text, padded, best) < 0.25
