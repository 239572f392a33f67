"""Published data sets as rows of the documented schema (schema.py), which then checks them like anybody's own.

Each source is told by its keys, the way its publisher wrote them:

    hh            {"chosen", "rejected"}: Anthropic HH (Bai et al. 2022), and every file of the schema itself
    oasst         message trees whose replies carry a rank (Köpf et al. 2023, OpenAssistant)
    fine-grained  four predictions and the six preferences between them (Wu et al. 2023, fine-grained RLHF)
    pandalm       two responses and annotator1 … annotatorN, 0 tie (Wang et al. 2023)
    tulu          pairs on a five-step scale with named evaluators (Wang et al. 2023, open-instruct), CSV
    likert        one rated output per row, gathered by prompt (UniEval's topical-chat and data-to-text files)
    summeval      a document's summaries by several systems, rated (Fabbri et al. 2021)
    hhh           helpful, honest and harmless pairs inside a judge's prompt (Askell et al. 2021, Prometheus's files)
    taskmaster    contexts, one generation each, reward 0 or 1 (Byrne et al. 2019; PERL), gathered by context

Fine-grained RLHF's retrieved passages are left out of the prompt: they are ten times as long as the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lodestar.data.verdicts import Row, number

Converted = Row | ValueError
"""A row of the schema, or what is wrong with that part of the source's row."""


@dataclass(frozen=True, slots=True)
class Source:
    """How one publisher's rows become ours."""

    name: str
    keys: frozenset[str]
    """Keys by which a row is recognised."""
    convert: Callable[[Row], Iterable[Converted]]
    gathered: bool = False
    """Rows hold one completion each; those of one prompt come together."""


def recognise(row: Row) -> Source:
    """The source whose keys the row has; the schema itself when it is nobody's."""
    return next((source for source in SOURCES if source.keys <= row.keys()), PLAIN)


def gather(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Rated rows of the same prompt as one, in the order and with the line of the first."""
    groups: dict[Any, tuple[int, dict[str, Any]]] = {}
    for line, row in rows:
        key = json.dumps([row["prompt"], sorted(row["ratings"])])
        if key not in groups:
            copied = {name: list(values) for name, values in row["ratings"].items()}
            groups[key] = line, {**row, "completions": list(row["completions"]), "ratings": copied}
            continue
        group = groups[key][1]
        group["completions"] += row["completions"]
        for name, values in row["ratings"].items():
            group["ratings"][name] += values
    yield from groups.values()


def _plain(row: Row) -> Iterator[Converted]:
    yield row


def _oasst(row: Row) -> Iterator[Converted]:
    root = _need(row, "prompt", dict)
    stack: list[tuple[Row, list[Row]]] = [(root, [])]
    while stack:
        node, before = stack.pop()
        roles = {"prompter": "user", "assistant": "assistant"}
        role = roles.get(str(node.get("role")))
        if role is None:
            yield ValueError(f"message {node.get('message_id')}: role must be prompter or assistant")
            continue
        path = [*before, {"role": role, "content": node.get("text")}]
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        stack += [(reply, path) for reply in reversed(replies)]
        if role == "user" and len(replies) > 1:
            yield _oasst_group(node, path, replies)


def _oasst_group(node: Row, path: list[Row], replies: list[Row]) -> Converted:
    """The ranked replies to one prompter message."""
    ranks = [reply.get("rank") for reply in replies]
    where = f"message {node.get('message_id')}"
    missing = [i for i, rank in enumerate(ranks) if rank is None]
    if missing:
        return ValueError(f"{where}: rank is missing for reply {', '.join(map(str, missing))} of {len(ranks)}")
    if len(set(ranks)) < len(ranks):
        return ValueError(f"{where}: rank is repeated: {ranks}")
    if not all(isinstance(rank, int) for rank in ranks):
        return ValueError(f"{where}: ranks must be whole numbers, got {ranks}")
    order = [index for _, index in sorted((int(rank or 0), index) for index, rank in enumerate(ranks))]
    return {
        "prompt": path,
        "completions": [reply.get("text") for reply in replies],
        "ranking": order,
        "id": str(node.get("message_id")),
    }


def _fine_grained(row: Row) -> Iterator[Converted]:
    count = sum(1 for key in row if re.fullmatch(r"prediction \d+", key))
    pairs = list(combinations(range(count), 2))
    preference = _need(row, "preference", list)
    if len(preference) != len(pairs):
        raise ValueError(f"preference must have {len(pairs)} values, one per pair of {count} predictions")
    label_of = {0: 0.5, 1: 1.0, 2: 0.0}
    choices = []
    for i, ((first, second), value) in enumerate(zip(pairs, preference, strict=True)):
        if value not in label_of:
            raise ValueError(f"preference[{i}] must be 0 (tie), 1 or 2, got {value!r}")
        choices.append({"first": first, "second": second, "label": label_of[value]})
    yield {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completions": [row.get(f"prediction {i + 1}") for i in range(count)],
        "choices": choices,
    }


def _pandalm(row: Row) -> Iterator[Converted]:
    question = "\n\n".join(text for text in (row["instruction"], row.get("input")) if text)
    annotators = sorted(key for key in row if re.fullmatch(r"annotator\d+", key))
    if not annotators:
        raise ValueError("has no annotator1")
    for name in annotators:
        label = {0: 0.5, 1: 1.0, 2: 0.0}.get(row[name])
        if label is None:
            yield ValueError(f"{name} must be 0 (tie), 1 or 2, got {row[name]!r}")
            continue
        yield {
            "prompt": [{"role": "user", "content": question}],
            "completions": [row["response1"], row.get("response2")],
            "label": label,
            "annotator": name,
            "subset": str(row.get("cmp_key", "")),
        }


_GRADES = {
    "a-is-better": (1.0, 2),
    "a-is-slightly-better": (1.0, 1),
    "tie": (0.5, 0),
    "b-is-slightly-better": (0.0, 1),
    "b-is-better": (0.0, 2),
}


def _tulu(row: Row) -> Iterator[Converted]:
    if row.get("preference") not in _GRADES:
        raise ValueError(f"preference must be one of {', '.join(_GRADES)}, got {row.get('preference')!r}")
    label, strength = _GRADES[row["preference"]]
    accepted = [row.get(f"completion_{side}_is_acceptable") for side in "ab"]
    yield {
        "prompt": [{"role": "user", "content": row.get("prompt")}],
        "completions": [row["completion_a"], row.get("completion_b")],
        "label": label,
        "strength": strength,
        "annotator": row.get("evaluator", ""),
        "subset": " against ".join(sorted(str(row.get(f"model_{side}")) for side in "ab")),
        "flags": [f"completion {i} unacceptable" for i, answer in enumerate(accepted) if answer == "no"],
    }


_TOPICAL = {
    "understandability": [0, 1],
    "naturalness": [1, 3],
    "coherence": [1, 3],
    "engagingness": [1, 3],
    "groundedness": [0, 1],
    "overall": [1, 5],
}
_DATA_TO_TEXT = {"informativeness": [1, 6], "naturalness": [1, 6], "overall": [1, 6]}


def _likert(row: Row) -> Iterator[Converted]:
    scales = _TOPICAL if "system_id" in row else _DATA_TO_TEXT
    texts = [_need(row, name, str) for name in ("context", "source") if row.get(name)]
    prompt = "\n\n".join(text.strip() for text in texts)
    ratings = _need(row, "scores", dict)
    yield {
        "prompt": [{"role": "user", "content": prompt}],
        "completions": [row["system_output"]],
        "ratings": {name: [value] for name, value in ratings.items()},
        "scales": {name: scale for name, scale in scales.items() if name in ratings},
    }


def _summeval(row: Row) -> Iterator[Converted]:
    systems = _need(row, "sys_summs", dict)
    aspects: dict[str, list[Any]] = {}
    for name, system in systems.items():
        for aspect, value in _need(system, "scores", dict, f"sys_summs.{name}").items():
            aspects.setdefault(aspect, []).append(value)
    yield {
        "prompt": [{"role": "user", "content": row.get("src")}],
        "completions": [system.get("sys_summ") for system in systems.values()],
        "ratings": aspects,
        "id": str(row.get("doc_id", "")),
    }


_HHH = re.compile(r"###The instruction to evaluate:\n(.*)\n\n###Response to evaluate:\n(.*)\n\n###Score Rubrics:", re.S)


def _hhh(row: Row) -> Iterator[Converted]:
    sides = {side: _HHH.search(_need(row, f"{side}_instruction", str)) for side in ("chosen", "rejected")}
    for side, found in sides.items():
        if found is None:
            raise ValueError(f"{side}_instruction lacks ###The instruction to evaluate or ###Response to evaluate")
    first, second = ((found[1].strip(), found[2].strip()) for found in sides.values() if found is not None)
    if first[0] != second[0]:
        raise ValueError("the instruction differs between chosen_instruction and rejected_instruction")
    yield {
        "prompt": [{"role": "user", "content": first[0]}],
        "completions": [first[1], second[1]],
        "label": 1.0,
        "subset": str(row.get("source", "")),
    }


def _taskmaster(row: Row) -> Iterator[Converted]:
    turns = [_turn(turn) for turn in _embedded(row, "context", list)]
    reward = number(row.get("reward"), "reward")
    if reward not in (0.0, 1.0):
        raise ValueError(f"reward must be 0 or 1, got {reward:g}")
    yield {
        "prompt": "\n".join([*turns, "agent:"]),
        "family": "\n".join(turns),
        "completions": [" " + _turn(_embedded(row, "generation", dict)).partition(": ")[2]],
        "ratings": {"approval": [reward]},
        "id": str(row.get("conversation_id", "")),
    }


def _turn(turn: Row) -> str:
    """``user: can i get an espresso``, or the call or reply of an interface as JSON."""
    said = turn.get("text") or json.dumps(turn.get("api") or turn.get("response") or {})
    return f"{turn.get('role')}: {said}"


def _embedded(row: Row, name: str, kind: type) -> Any:
    """JSON inside a string."""
    try:
        value = json.loads(_need(row, name, str))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error.msg}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{name} must hold a JSON {kind.__name__}")
    return value


def _need(row: Row, name: str, kind: type, where: str = "") -> Any:
    value = row.get(name)
    field = f"{where}.{name}" if where else name
    if value is None:
        raise ValueError(f"{field} is missing")
    if not isinstance(value, kind) or not isinstance(row, Mapping):
        raise ValueError(f"{field} must be a {kind.__name__}, got {type(value).__name__}")
    return value


PLAIN = Source("hh", frozenset(), _plain)
SOURCES = (
    Source("oasst", frozenset({"message_tree_id", "prompt"}), _oasst),
    Source("fine-grained", frozenset({"question", "prediction 1", "preference"}), _fine_grained),
    Source("pandalm", frozenset({"instruction", "response1", "annotator1"}), _pandalm),
    Source("tulu", frozenset({"completion_a", "completion_b", "preference"}), _tulu),
    Source("likert", frozenset({"source", "system_output", "scores"}), _likert, gathered=True),
    Source("summeval", frozenset({"src", "sys_summs"}), _summeval),
    Source("hhh", frozenset({"chosen_instruction", "rejected_instruction"}), _hhh),
    Source("taskmaster", frozenset({"context", "generation", "reward"}), _taskmaster, gathered=True),
)
