"""What callers may hand over, and how what means nothing is refused: by its place and the type that was wanted."""

from typing import Any

import numpy as np
import pytest

from lodestar.client import calls
from lodestar.client.base import built
from lodestar.errors import InvalidArgument
from lodestar.records import ChatMessage, SamplingParams, Scored, ScoreItem


def refused(build: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidArgument) as error:
        built(build, *args, **kwargs)
    return str(error.value)


def test_a_chat_may_be_dicts_and_sampling_a_mapping() -> None:
    chat = [{"role": "user", "content": "hi"}]
    one = built(calls.generate, chat, {"max_tokens": 4, "stop": "\n"}).request
    other = built(calls.generate, [ChatMessage("user", "hi")], SamplingParams(4, stop=("\n",))).request
    assert one == other
    assert built(calls.tokenize, chat).request.chat == one.chat


def test_items_may_be_pairs_dicts_and_records() -> None:
    items = [("a", "b"), ["a", "b"], {"prompt": "a", "completion": "b"}, ScoreItem("a", "b")]
    request = built(calls.score, items).request
    assert all(item == request.items[0] for item in request.items)
    ids = built(calls.score, [((1, 2), np.array([3, 4]))], tokenizer_hash="x").request.items[0]
    assert (list(ids.prompt_tokens.ids), list(ids.completion_tokens.ids)) == ([1, 2], [3, 4])


def test_log_probs_are_asked_for_by_pairs_of_ids_dicts_and_records() -> None:
    sequences = [([5, 8], [13, 1]), {"token_ids": [5, 8, 13, 1], "prompt_tokens": 2}, Scored((5, 8, 13, 1), 2)]
    for build in (calls.policy_logprobs, calls.reference_logprobs):
        request = built(build, sequences).request
        assert all(one == request.sequences[0] for one in request.sequences)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((None,), {"max_tokens": 4}, "prompt: must be text, token ids, or a chat of ChatMessages"),
        ((["a", "b"],), {"max_tokens": 4}, "prompt[0]: must be text, token ids, or a chat"),
        (([],), {"max_tokens": 4}, "prompt: is empty"),
        (([1, "b"],), {"max_tokens": 4}, "prompt[1]: must be a token id (int), is str 'b'"),
        (([{"role": "user", "text": "hi"}],), {"max_tokens": 4}, "prompt[0].text: is none of role, content"),
        (("a",), {"max_tokens": "4"}, "sampling.max_tokens: must be int, is str '4'"),
        (("a",), {"max_tokens": True}, "sampling.max_tokens: must be int, is bool True"),
        (("a",), {"max_tokens": 4, "temperature": "hot"}, "sampling.temperature: must be float, is str 'hot'"),
        (("a",), {"max_tokens": 4, "logprobs": 1}, "sampling.logprobs: must be bool, is int 1"),
        (("a",), {"max_token": 4}, "sampling.max_token: is no option of sampling; did you mean max_tokens?"),
        (("a", 4), {}, "sampling: must be SamplingParams, or a mapping of its fields, is int 4"),
        (("a",), {"max_tokens": 4, "min_version": 3}, "min_version: must be a WeightVersion"),
    ],
)
def test_generate_names_the_type_that_was_wanted(args: tuple[Any, ...], kwargs: dict[str, Any], said: str) -> None:
    assert said in refused(calls.generate, *args, **kwargs)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("abc", "items: must be a list of ScoreItems, (prompt, completion) pairs or"),
        ([("a", "b", "c")], "items[0]: must be ScoreItems, (prompt, completion) pairs or"),
        ([("a", "b"), "cd"], "items[1]: must be ScoreItems"),
        ([{"prompt": "a"}], "items[0].completion: is missing"),
        (
            [{"prompt": "a", "completion": "b", "cutoff": True}],
            "items[0].cutoff: is none of prompt, completion, cut_off",
        ),
        ([(1, 2)], "items[0].prompt: must be text or token ids, is int 1"),
    ],
)
def test_score_names_the_item_and_the_type_that_was_wanted(items: Any, said: str) -> None:
    assert said in refused(calls.score, items)


def test_text_is_refused_for_log_probs_with_what_makes_ids_of_it() -> None:
    said = refused(calls.reference_logprobs, [("a", "b")])
    assert "sequences[0]: is text, and log-probs are of token ids (PolicyClient.tokenize)" in said
    assert "sequences[0].prompt_tokens: must be int, is str '2'" in refused(
        calls.policy_logprobs,
        [Scored((1, 2, 3), "2")],  # type: ignore[arg-type]
    )


def test_an_unknown_keyword_is_refused_with_the_nearest() -> None:
    said = refused(calls.score, [("a", "b")], timout=3)
    assert said.startswith("timout: got an unexpected keyword argument 'timout'; did you mean timeout?; it takes items")
    assert refused(calls.score).startswith("request: missing a required argument: 'items'")
