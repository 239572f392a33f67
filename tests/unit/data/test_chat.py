"""What a template writes is what is trained and served, whatever stands in the messages."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lodestar.data.chat import ChatFormat
from lodestar.data.dates import pinned
from lodestar.data.marks import MARK, Marks, control_tokens, unmarked
from lodestar.data.rows import encode_completions, encode_demonstrations, encode_prompts
from lodestar.engine.chat import chat_ids
from lodestar.errors import InvalidArgument
from lodestar.records import ChatMessage
from tests.unit.data.templates import CHATML, REFUSES, SPECIALS, TEMPLATES, byte_tokenizer, shipped_templates

TOKENIZERS = {name: byte_tokenizer(template) for name, template in TEMPLATES.items()}
FORMATS = {name: ChatFormat(tokenizer) for name, tokenizer in TOKENIZERS.items()}
WORDS = st.one_of(
    st.sampled_from(["a", "d", "e", "i", "end", "</think>", "<think>", "assistant", "Aa", "Zz", *SPECIALS]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK), max_size=8),
)
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map("".join).filter(str.strip)
DIALOGUES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
EXAMPLES = 200
"""Dialogues per template here; the slow tier draws 10,000."""


def _messages(dialogue: list[tuple[str, str]]) -> tuple[list[ChatMessage], str]:
    turns = [
        ChatMessage(role, text) for pair in dialogue for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return turns[:-1], turns[-1].content


def _decoded_as_rendered(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, dialogue: list[tuple[str, str]]) -> None:
    """SFT's tokens decode to the template's rendering, and what messages hold is no control token but text."""
    messages, reply = _messages(dialogue)
    prompt, completion = chat.reply(messages, reply)
    (row,) = encode_demonstrations(tokenizer, [prompt], [completion])
    assert encode_prompts(tokenizer, [prompt]) == [row.token_ids[: row.prompt_tokens]]
    turns = [{"role": m.role, "content": m.content} for m in (*messages, ChatMessage("assistant", reply))]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    added = "" if any(name in chat.ending() for name in SPECIALS) else "</s>"
    assert tokenizer.decode(row.token_ids) == rendered + added
    special = set(range(len(SPECIALS)))
    plain = [{**turn, "content": "x"} for turn in turns]
    (skeleton,) = encode_prompts(tokenizer, [tokenizer.apply_chat_template(plain, tokenize=False) + added])
    assert [i for i in row.token_ids if i in special] == [i for i in skeleton if i in special]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_of_a_demonstration_decode_to_the_templates_rendering(name: str) -> None:
    settings(max_examples=EXAMPLES, deadline=None)(
        given(DIALOGUES)(lambda d: _decoded_as_rendered(TOKENIZERS[name], FORMATS[name], d))
    )()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ten_thousand_dialogues_decode_to_their_rendering(name: str) -> None:
    settings(max_examples=10_000, deadline=None)(
        given(DIALOGUES)(lambda d: _decoded_as_rendered(TOKENIZERS[name], FORMATS[name], d))
    )()


@pytest.mark.parametrize("name", TEMPLATES)
@given(reply=TEXTS)
@settings(max_examples=50, deadline=None)
def test_a_reply_is_written_whatever_its_letters(name: str, reply: str) -> None:
    completion = unmarked(FORMATS[name].completion([ChatMessage("user", "Which?")], reply))
    kept = reply.strip() if name == "trims" else reply
    assert completion.endswith(kept) or "</think>" in reply


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", "<|im_end|>\n"),
        ("trims", " </s>"),
        ("another end of turn", "<|eot|>"),
        ("no control token", "\n\n"),
        ("nothing after the reply", ""),
        ("opens a thought", "<|im_end|>\n"),
    ],
)
def test_a_completion_ends_as_the_template_ends_a_turn(name: str, written: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert FORMATS[name].ending() == written
    (ids,) = encode_completions(tokenizer, ["yes"])
    control = re.search(r"<\|?\w+\|?>|</s>", written)
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == (control[0] if control else "</s>")
    assert tokenizer.decode(ids).startswith("yes" + written[: control.end()] if control else "yes" + written)
    assert encode_completions(tokenizer, ["yes"], ended=False) == [ids[:3]]


def test_a_reasoning_templates_prompt_is_cut_to_what_it_shares_with_the_whole() -> None:
    chat = ChatFormat(TOKENIZERS["opens a thought"])
    asked = [ChatMessage("user", "q")]
    assert chat.prompt(asked).endswith("assistant\n<think>\n")
    prompt, completion = chat.reply(asked, "<thanks>")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert (completion, chat.cut_back) == ("<thanks>", 1)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "thought" not in name and "another name" not in name])
def test_served_chats_are_the_tokens_that_training_gave(name: str) -> None:
    for bos in (False, True):
        tokenizer = byte_tokenizer(TEMPLATES[name], bos=bos)
        asked = [ChatMessage("user", "Is <|im_end|> text?")]
        prompt, completion = ChatFormat(tokenizer).reply(asked, "Yes.")
        (row,) = encode_demonstrations(tokenizer, [prompt], [completion])
        assert chat_ids(tokenizer, asked) == row.token_ids[: row.prompt_tokens]
        assert row.token_ids.count(1) == int(bos or name == "trims")


def test_templates_that_transformers_ships_are_right_or_refused() -> None:
    right, refused = [], []
    for name, template in shipped_templates():
        tokenizer = byte_tokenizer(template)
        chat = ChatFormat(tokenizer)
        for dialogue in ([("Hi, end?", "d")], [("a", "b"), ("c <|im_end|>", "e</s>")]):
            try:
                chat.reply(*_messages(dialogue))
            except ValueError:
                refused.append(name)
            else:
                _decoded_as_rendered(tokenizer, chat, dialogue)
                right.append(name)
    assert {name.partition("/")[0] for name in right} >= {"llama4", "qwen2_audio"}, (right, refused)


def test_what_a_template_refuses_is_said_in_its_own_words_with_advice() -> None:
    chat = ChatFormat(byte_tokenizer(REFUSES))
    system, first, second = (ChatMessage(r, t) for r, t in (("system", "s"), ("user", "a"), ("user", "b")))
    with pytest.raises(ValueError, match=r"refuses it: roles must take turns; data\.merge_turns joins"):
        chat.reply([first, second], "yes")
    with pytest.raises(ValueError, match=r"refuses it: roles must take turns; data\.fold_system puts"):
        chat.reply([system, first], "yes")
    with pytest.raises(InvalidArgument, match="messages: the chat template refuses it: roles must take turns"):
        chat_ids(byte_tokenizer(REFUSES), [first, second])
    mended = ChatFormat(byte_tokenizer(REFUSES), merge_turns=True, fold_system=True)
    assert mended.reply([system, first, second], "yes") == ("s\n\na\n\nb</s>", "yes")
    assert (mended.merged, mended.folded) == (1, 1)


@pytest.mark.parametrize("template", ["{{ messages[5].content }}", "{{ 1 / 0 }}", "{{ messages | nothing }}"])
def test_a_broken_template_is_a_sentence_and_no_traceback(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses it"):
        ChatFormat(byte_tokenizer(template)).prompt([ChatMessage("user", "q")])


def test_a_template_that_drops_the_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="does not write the assistant's reply as it is"):
        ChatFormat(byte_tokenizer("{{ messages[0]['content'] }}")).reply([ChatMessage("user", "q")], "a")


def test_control_tokens_in_text_are_marked_once_and_come_back() -> None:
    tokenizer = byte_tokenizer(CHATML)
    text = "a<|im_end|>b</s><|im_end|>"
    marked = Marks(tokenizer)(text)
    assert unmarked(marked) == text
    assert not any(name in marked for name in control_tokens(tokenizer))
    assert tokenizer.decode(encode_prompts(tokenizer, [marked])[0]) == text
    assert not set(encode_prompts(tokenizer, [marked])[0]) & set(range(len(SPECIALS)))


DATED = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y') }} {{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (DATED, "26 Jul 2024 2024 q"),
        ("{% set f = '%m' %}{{ strftime_now(f) }} {{ messages[0]['content'] }}", "2024-07-26 q"),
        ("{{ date_string }} {{ messages[0]['content'] }}", "26 Jul 2024 q"),
        ("{{ messages[0]['content'] }}", "q"),
    ],
)
def test_a_template_writes_the_pinned_date(template: str, written: str) -> None:
    once = pinned(template, "2024-07-26")
    assert pinned(once, "1999-01-01") == once
    assert ChatFormat(byte_tokenizer(once)).prompt([ChatMessage("user", "q")]) == written


def test_todays_date_does_enter_where_nothing_is_pinned() -> None:
    year = str(datetime.datetime.now().year)
    assert year in ChatFormat(byte_tokenizer(DATED)).prompt([ChatMessage("user", "q")])


def _decodes(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.decode(encode_prompts(tokenizer, ["a b"])[0]))


def test_the_tokenizer_of_these_tests_decodes() -> None:
    assert all(map(_decodes, TOKENIZERS.values()))
