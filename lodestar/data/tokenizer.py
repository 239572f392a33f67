"""Tokenizers made for a run: one id per word of the synthetic world, or byte-level BPE for real text.

Both have ``<pad>`` ≠ ``<eos>``, put ``<bos>`` before a prompt (the first prompt token then has a state to be predicted
from, and a policy can answer an empty prompt), and carry a chat template.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lodestar.config import TokenizerConfig
from lodestar.errors import ConfigError

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = [PAD, BOS, EOS, UNKNOWN]

WORD_TEMPLATE = "{% for message in messages %}{{ ' ' if not loop.first }}{{ message['content'] }}{% endfor %}"
"""The synthetic world's prompts are one message, as it stands."""
DIALOGUE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + ('Assistant' if message['role'] == 'assistant' else 'Human') + ': ' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""Anthropic HH's dialogues; also for a model whose tokenizer has no template. A system message speaks as Human."""


def template(kind: Literal["word", "bpe"]) -> str:
    """The chat template of a tokenizer that train_tokenizer makes."""
    return WORD_TEMPLATE if kind == "word" else DIALOGUE_TEMPLATE


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], *, context_tokens: int) -> PreTrainedTokenizerBase:
    """A tokenizer of at most ``config.vocab_size`` entries; the same texts give the same tokenizer.

    Raises:
        ConfigError: a byte-level vocabulary too small for the 256 bytes and the special tokens.
    """
    least = 256 + len(SPECIALS)
    if config.kind == "bpe" and config.vocab_size < least:
        raise ConfigError(
            "model.tokenizer.vocab_size", f"byte-level BPE needs at least {least}, got {config.vocab_size}"
        )
    build = _word_level if config.kind == "word" else _byte_level_bpe
    tokenizer = build(texts, config.vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=context_tokens,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=template(config.kind),
    )


def _word_level(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
