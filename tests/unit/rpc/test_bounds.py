"""What a message may hold is counted before it is read."""

from __future__ import annotations

from typing import Any

import pytest

from lodestar.errors import InvalidArgument
from lodestar.rpc.bounds import check_chat, check_sampling, check_score_items, check_sequences, check_text, slices
from lodestar.v1 import common_pb2, policy_pb2, reward_pb2


def test_a_text_is_bounded_by_the_context() -> None:
    check_text("x" * 32_000, "text", 1000)
    check_text("x" * 8192, "text", 8)
    with pytest.raises(InvalidArgument, match=r"text: holds 32001 characters; at most 32000 for this model's context"):
        check_text("x" * 32_001, "text", 1000)


def test_a_chat_is_bounded_as_a_whole_and_by_its_messages() -> None:
    message = common_pb2.ChatMessage(role="user", content="x" * 4000)
    check_chat([message] * 2, "chat", 8)
    with pytest.raises(InvalidArgument, match="chat: holds 12012 characters"):
        check_chat([message] * 3, "chat", 8)
    with pytest.raises(InvalidArgument, match="chat: holds 1025 messages; at most 1024"):
        check_chat([common_pb2.ChatMessage(role="user")] * 1025, "chat", 10_000)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stop": ["x"] * 65}, r"sampling\.stop: holds 65 strings; at most 64"),
        ({"stop": ["a", "x" * 1025]}, r"sampling\.stop\[1\]: holds 1025 characters; at most 1024"),
        ({"stop_token_ids": range(1025)}, r"sampling\.stop_token_ids: holds 1025 ids; at most 1024"),
        ({"logit_bias": dict.fromkeys(range(4097), 1.0)}, r"sampling\.logit_bias: holds 4097 tokens; at most 4096"),
    ],
)
def test_stops_and_biases_are_bounded(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        check_sampling(policy_pb2.SamplingParams(**options))


def test_sequences_and_items_are_bounded_one_by_one() -> None:
    check_sequences([policy_pb2.Scored(token_ids=range(8))], "sequences", 8)
    with pytest.raises(InvalidArgument, match=r"sequences\[1\]\.token_ids: holds 9 tokens"):
        check_sequences([policy_pb2.Scored(token_ids=range(n)) for n in (8, 9)], "sequences", 8)
    with pytest.raises(InvalidArgument, match=r"items\[0\]\.completion_text: holds 9000 characters"):
        check_score_items([reward_pb2.ScoreItem(prompt_text="a", completion_text="x" * 9000)], 8, 2**20)
    with pytest.raises(InvalidArgument, match=r"items\[0\]\.prompt_text: is longer than 100 characters"):
        check_score_items([reward_pb2.ScoreItem(prompt_text="x" * 101)], None, 100)
    with pytest.raises(InvalidArgument, match=r"items\[0\]\.prompt_tokens: holds 9 tokens"):
        check_score_items([reward_pb2.ScoreItem(prompt_tokens=common_pb2.Tokens(ids=range(9)))], 8, 100)


def test_a_row_is_cut_into_turns() -> None:
    assert slices([], 10) == []
    assert slices([3, 3, 3, 3], 6) == [slice(0, 2), slice(2, 4)]
    assert slices([30, 1, 1, 30], 6) == [slice(0, 1), slice(1, 3), slice(3, 4)]
    assert slices([0, 0, 7], 6) == [slice(0, 2), slice(2, 3)]
