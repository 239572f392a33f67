"""The one place that turns a prompt and a completion into token ids.

SFT, reward training, PPO, the reward service and the evaluation all use these functions, so that the same text is
the same tokens everywhere:

    [BOS] prompt | completion EOS

- Prompt and completion are tokenized apart, so that a prompt's tokens never depend on what follows it: generation
  starts from exactly the tokens that were trained on.
- BOS comes first where the tokenizer itself would put it (Lodestar's own tokenizers do), and once: a chat template
  may have written it into the text already.
- EOS ends a completion that ended (``ended=True``), as it ends a sampled response; one that was cut off has none.
- Special tokens written in the text (``<|im_start|>``) become those tokens: prompts are rendered text, after the chat
  template.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lodestar.records import Scored

Tokens = tuple[int, ...]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Tokens]:
    """Token ids of rendered prompts, BOS first where the tokenizer puts one."""
    head = _leading_bos(tokenizer)
    rows = _encode(tokenizer, prompts)
    return [row if row[: len(head)] == head else head + row for row in rows]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[str], *, ended: bool = True
) -> list[Tokens]:
    """Token ids of completions, EOS last unless they were cut off."""
    tail = (_eos(tokenizer),) if ended else ()
    return [row + tail for row in _encode(tokenizer, completions)]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], *, ended: bool = True
) -> list[Scored]:
    """Prompt and completion of each row as one sequence that knows where its prompt ends."""
    heads = encode_prompts(tokenizer, prompts)
    tails = encode_completions(tokenizer, completions, ended=ended)
    return [Scored(head + tail, prompt_tokens=len(head)) for head, tail in zip(heads, tails, strict=True)]


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, longest: int) -> list[Tokens]:
    """Plain text to model from its first token to EOS (a prompt without an end, so BOS and EOS as above), cut into
    pieces of 2 … ``longest`` tokens."""
    rows = [(*row, _eos(tokenizer)) for row in encode_prompts(tokenizer, documents)]
    pieces = (row[start : start + longest] for row in rows for start in range(0, len(row), longest))
    return [piece for piece in pieces if len(piece) > 1]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    if not texts:
        return []
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    bos = tokenizer.bos_token_id
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return (bos,) if bos is not None and bos in ids[:1] else ()


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses a tokenizer without EOS"
    return eos
