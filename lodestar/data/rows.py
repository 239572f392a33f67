"""The one place that turns a prompt and a completion into token ids.

SFT, reward training, PPO, the reward service and the evaluation all use these functions, so that the same text is
the same tokens everywhere:

    [BOS] [control token] prompt | completion end-of-turn

- Prompt and completion are tokenized apart, so that a prompt's tokens never depend on what follows it: generation
  starts from exactly the tokens that were trained on.
- BOS comes first where the tokenizer itself would put it (Lodestar's own tokenizers do), and once: a chat template
  may have written it into the text already.
- The best control token follows where the tokenizer is a conditioned model's (lodestar.data.control).
- A completion that ended (``ended=True``) ends as the tokenizer's chat template ends a turn, with the token that ends
  generation last (``ending``); one that was cut off has none of it.
- Special tokens written in the text (``<|im_start|>``) become those tokens: prompts are rendered text, after the chat
  template. Those that rendering has marked (lodestar.data.marks) stay text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from lodestar.data.chat import ChatFormat
from lodestar.data.control import Control
from lodestar.data.marks import MARK
from lodestar.records import Scored

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ends, in tokens: ``Ending((2,), (2, 198))`` for ``<|im_end|>\\n``."""

    stop: Tokens
    """Up to the token that ends generation, which is the last: how a sampled response ends."""
    whole: Tokens
    """With what the template writes after it: how a demonstration ends."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Tokens]:
    """Token ids of rendered prompts, BOS first where the tokenizer puts one, then the best control token if any."""
    control = Control.of(tokenizer)
    return [control.before(row) for row in encode_beginnings(tokenizer, prompts)]


def encode_beginnings(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Token ids of texts that begin a sequence, BOS first where the tokenizer puts one; no control token."""
    head = _leading_bos(tokenizer)
    rows = _encode(tokenizer, texts)
    return [row if row[: len(head)] == head else head + row for row in rows]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[str], *, ended: bool = True
) -> list[Tokens]:
    """Token ids of completions, the end of turn last unless they were cut off."""
    tail = ending(tokenizer).stop if ended else ()
    return [row + tail for row in _encode(tokenizer, completions, inside=True)]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], *, ended: bool = True
) -> list[Scored]:
    """Prompt and completion of each row as one sequence that knows where its prompt ends."""
    heads = encode_prompts(tokenizer, prompts)
    tails = encode_completions(tokenizer, completions, ended=ended)
    return [Scored(head + tail, prompt_tokens=len(head)) for head, tail in zip(heads, tails, strict=True)]


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[Scored]:
    """As encode_rows, with all that the template writes after a turn: they decode to its rendering."""
    rest = ending(tokenizer).whole[len(ending(tokenizer).stop) :]
    rows = encode_rows(tokenizer, prompts, completions)
    return [Scored(row.token_ids + rest, prompt_tokens=row.prompt_tokens) for row in rows]


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, longest: int) -> list[Tokens]:
    """Plain text to model from its first token to EOS (BOS as above), cut into pieces of 2 … ``longest`` tokens."""
    rows = [(*row, _eos(tokenizer)) for row in encode_beginnings(tokenizer, documents)]
    pieces = (row[start : start + longest] for row in rows for start in range(0, len(row), longest))
    return [piece for piece in pieces if len(piece) > 1]


def ending(tokenizer: PreTrainedTokenizerBase) -> Ending:
    """How completions end: as the chat template ends a turn; where it writes no special token there, EOS follows.

    The last token of ``stop`` must end generation: whoever generates takes it beside the EOS ids of the model.
    """
    return _ending(tokenizer, tokenizer.chat_template or "", _eos(tokenizer))


@lru_cache(maxsize=32)
def _ending(tokenizer: PreTrainedTokenizerBase, template: str, eos: int) -> Ending:
    try:
        text = ChatFormat(tokenizer).ending() if template else ""
    except ValueError:  # a template that refuses a question and its answer: nothing is ever rendered with it
        text = ""
    (ids,) = _encode(tokenizer, [text], inside=True)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {eos}
    stops = [place for place, token in enumerate(ids) if token in special]
    if not stops:
        return Ending((*ids, eos), (*ids, eos))
    return Ending(ids[: stops[0] + 1], ids)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, inside: bool = False) -> list[Tokens]:
    """Token ids of texts that begin a sequence or, with ``inside``, go on with one."""
    if not texts:
        return []
    texts = [*map(Control.of(tokenizer).as_text, texts)]
    guard = _guard(tokenizer) if inside or any(MARK in text for text in texts) else ""
    pieces = [text.split(MARK) for text in texts]
    guarded = [(guard if place or inside else "") + piece for parts in pieces for place, piece in enumerate(parts)]
    encoded = tokenizer(guarded, add_special_tokens=False, return_attention_mask=False, verbose=False)
    rows = iter(encoded["input_ids"])
    skip = int(bool(guard))
    return [
        tuple(token for place in range(len(parts)) for token in next(rows)[skip if place or inside else 0 :])
        for parts in pieces
    ]


def _guard(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token to put before a text that begins no sequence, so that the tokenizer adds no space to it."""
    return _guard_of(tokenizer, _eos(tokenizer))


@lru_cache(maxsize=32)
def _guard_of(tokenizer: PreTrainedTokenizerBase, eos: int) -> str:
    alone, after = tokenizer(["a", f"{tokenizer.eos_token}a"], add_special_tokens=False)["input_ids"]
    return str(tokenizer.eos_token) if after[0] == eos and after[1:] != alone else ""


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    bos = tokenizer.bos_token_id
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return (bos,) if bos is not None and bos in ids[:1] else ()


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses a tokenizer without EOS"
    return eos
