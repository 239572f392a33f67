"""PRISM: people around the world rate up to four models at every turn, 1 … 100 (Kirk et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, Numbered, need, user
from lodestar.data.verdicts import Row


def _conversation(row: Row) -> Iterator[Converted]:
    """Each turn's rated replies after the user's words and the replies chosen before."""
    history = need(row, "conversation_history", list)
    before: list[dict[str, Any]] = []
    for turn in sorted({entry.get("turn", 0) for entry in history}):
        entries = [entry for entry in history if entry.get("turn", 0) == turn]
        questions = [entry for entry in entries if entry.get("role") == "user"]
        replies = [entry for entry in entries if entry.get("role") == "model"]
        if len(questions) != 1 or not replies:
            yield ValueError(f"turn {turn} must have one question and replies to it")
            return
        prompt = before + user(questions[0].get("content"))
        yield {
            "prompt": prompt,
            "completions": [reply.get("content") for reply in replies],
            "ratings": {"score": [reply.get("score") for reply in replies]},
            "scales": {"score": [1, 100]},
            "annotator": str(row.get("user_id", "")),
            "subset": str(row.get("conversation_type") or ""),
            "id": f"{row.get('conversation_id', '')}/{turn}",
        }
        chosen = [reply for reply in replies if reply.get("if_chosen")]
        if len(chosen) != 1:
            return
        before = [*prompt, {"role": "assistant", "content": chosen[0].get("content")}]


def _utterances(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Conversations of the rated replies of a file."""
    conversations: dict[Any, tuple[int, dict[str, Any]]] = {}
    asked: set[tuple[Any, Any]] = set()
    for line, row in rows:
        name, turn = row["conversation_id"], row["turn"]
        whole = {"conversation_id": name, "user_id": row.get("user_id"), "conversation_history": []}
        _, whole = conversations.setdefault(name, (line, whole | {"conversation_type": row.get("conversation_type")}))
        if (name, turn) not in asked:
            asked.add((name, turn))
            whole["conversation_history"].append({"turn": turn, "role": "user", "content": row["user_prompt"]})
        reply = {"turn": turn, "role": "model", "content": row["model_response"]}
        whole["conversation_history"].append(reply | {name: row.get(name) for name in ("score", "if_chosen")})
    yield from conversations.values()


ADDRESS = "https://huggingface.co/datasets/HannahRoseKirk/prism-alignment"
FORMATS = (
    Format("PRISM conversations", ADDRESS, frozenset({"conversation_history", "conversation_id"}), _conversation),
    Format(
        "PRISM utterances",
        ADDRESS,
        frozenset({"conversation_id", "turn", "user_prompt", "model_response", "score"}),
        _conversation,
        gather=_utterances,
    ),
)
