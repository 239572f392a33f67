"""What every stage of a run will do with its models, and what it will refuse, before any weight is loaded.

Configurations and tokenizers are read, and models built on the meta device, where they take no memory: a 70B model
costs what a small one does. What only weights can show (whether log-probs equal those of transformers' own attention)
is compared when they are loaded: see lodestar.model.probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lodestar.errors import ModelError
from lodestar.model.attention import NAME
from lodestar.model.classifiers import ensure_classifier, note_of
from lodestar.model.context import context_tokens
from lodestar.model.folders import check_folder, read_config
from lodestar.model.kept import CacheShape
from lodestar.model.logits import logit_rule
from lodestar.model.quiet import quiet_transformers
from lodestar.model.tokenizers import (
    Vocabulary,
    check_ids_of,
    check_rows,
    ids_of,
    load_encoder_tokenizer,
    load_tokenizer,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table: ``Finding("policy", "context", "2048 tokens")``."""

    model: str
    """Role of the model, or the name of a source of rewards."""
    aspect: str
    says: str
    refused: bool = False
    """The run would end there."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """All findings, in the order of the stages."""

    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Why the run would end before it is done; empty when nothing is known to stop it."""
        return tuple(finding for finding in self.findings if finding.refused)

    def __str__(self) -> str:
        """The table in plain text."""
        rows = [(one.model, one.aspect, ("✗ " if one.refused else "") + one.says) for one in self.findings]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
        return "\n".join(f"{model:<{widths[0]}}  {aspect:<{widths[1]}}  {says}" for model, aspect, says in rows)


def preflight(
    policy: str | Path | None,
    scorers: Mapping[str, str | Path] | None = None,
    *,
    dtype: str = "float32",
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    row_tokens: int | None = None,
    dialogues: bool = False,
    makes_scalar: bool = True,
    lora: bool = False,
) -> Preflight:
    """Look at a run's models without their weights; raises nothing for what is wrong with them.

    ``policy`` is the model that is trained, None for one made from nothing; ``scorers`` are served reward models by
    name. ``prompt_tokens``, ``response_tokens`` and ``row_tokens`` are the longest prompt, response and training row of
    the run; ``dialogues`` says that its rows are messages, ``makes_scalar`` that a reward model or critic is made of
    the policy, ``lora`` that adapters are asked for.
    """
    found: list[Finding] = []
    if policy is None:
        if lora:
            says = "model.lora needs model.path: a model made from nothing has no weights to adapt"
            found.append(Finding("policy", "LoRA", says, refused=True))
    else:
        wanted = max((prompt_tokens or 0) + (response_tokens or 0), row_tokens or 0)
        found += _policy(policy, dtype, wanted, dialogues, makes_scalar, lora)
    for name, path in (scorers or {}).items():
        found += _scorer(name, path, dtype, (prompt_tokens or 0) + (response_tokens or 0))
    return Preflight(tuple(found))


def _policy(
    path: str | Path, dtype: str, wanted: int, dialogues: bool, makes_scalar: bool, lora: bool
) -> Iterator[Finding]:
    config = yield from _attempt("policy", "files", lambda: _config(path))
    if config is None:
        return
    model = yield from _attempt("policy", "class", lambda: _empty(AutoModelForCausalLM, config))
    tokenizer = yield from _attempt("policy", "tokenizer", lambda: load_tokenizer(path))
    if tokenizer is not None:
        yield from _ids("policy", config, tokenizer, path)
        if dialogues:
            own = bool(getattr(tokenizer, "chat_template", None))
            yield Finding("policy", "template", "the tokenizer's own" if own else "none; Lodestar's own is used")
    yield _context("policy", config, wanted)
    if model is None:
        return
    yield Finding("policy", "class", type(model).__name__)
    yield _size("policy", model, dtype)
    rule = yield from _attempt("policy", "logits", lambda: logit_rule(config))
    if rule is not None and (rule.scale != 1.0 or rule.softcap is not None):
        cap = "" if rule.softcap is None else f", capped at {rule.softcap:g}"
        yield Finding("policy", "logits", f"scaled by {rule.scale:g}{cap}")
    yield from _kept(model, dtype)
    if makes_scalar:
        yield from _scalar(config)
    if lora:
        linear = sum(isinstance(module, nn.Linear) for module in model.modules())
        yield Finding("policy", "LoRA", f"adapters for up to {linear} linear maps")


def _scorer(name: str, path: str | Path, dtype: str, wanted: int) -> Iterator[Finding]:
    config = yield from _attempt(name, "files", lambda: _config(path))
    if config is None:
        return
    model = yield from _attempt(name, "class", lambda: _classifier(config))
    if model is None:
        return
    packed = isinstance(getattr(model, "score", None), nn.Linear)
    yield Finding(name, "class", f"{type(model).__name__}, {'packed' if packed else 'as pairs of texts'}")
    yield _size(name, model, dtype)
    load = load_tokenizer if packed else load_encoder_tokenizer
    tokenizer = yield from _attempt(name, "tokenizer", lambda: load(path))
    if tokenizer is not None and packed:
        yield from _ids(name, config, tokenizer, path)
    yield _context(name, config, wanted)


def _attempt(model: str, aspect: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; where it raises, a finding, and None."""
    try:
        return make()
    except ModelError as error:
        yield Finding(model, aspect, str(error), refused=True)
    return None


def _config(path: str | Path) -> Any:
    check_folder(Path(path))
    return read_config(path)


def _empty(factory: Any, config: Any) -> Any:
    """The model on the meta device, on our attention."""
    with quiet_transformers(), torch.device("meta"):
        try:
            return factory.from_config(config, attn_implementation=NAME).eval()
        except KeyError as error:
            if error.args == (NAME,):
                raise ModelError(
                    f"{config.model_type} keeps its own attention code beside transformers' interface, and Lodestar's "
                    "cannot take its place; it is not served"
                ) from error
            raise ModelError(f"{config.model_type}: cannot be built: {error}") from error
        except (ValueError, ImportError, TypeError, AttributeError, AssertionError, RuntimeError, OSError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{config.model_type}: cannot be built: {first}") from error


def _classifier(config: Any) -> Any:
    ensure_classifier(config)
    with quiet_transformers(), torch.device("meta"):
        try:
            return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        except (ValueError, ImportError, KeyError, TypeError, AttributeError, AssertionError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{config.model_type}: cannot be built: {first}") from error


def _scalar(config: Any) -> Iterator[Finding]:
    made = yield from _attempt("scalar head", "class", lambda: _classifier(config))
    if made is None:
        return
    if not isinstance(getattr(made, "score", None), nn.Linear):
        says = f"{type(made).__name__} has no linear head named score: no reward model or critic can be made of it"
        yield Finding("scalar head", "class", says, refused=True)
        return
    ours = " (Lodestar's own; its folder says how to load it)" if note_of(made) else ""
    yield Finding("scalar head", "class", f"{type(made).__name__}{ours}")


def _ids(name: str, config: Any, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> Iterator[Finding]:
    rows = int(config.get_text_config().vocab_size)
    vocabulary = Vocabulary.of(tokenizer)

    def check() -> bool:
        check_ids_of(config.get_text_config(), rows, f"{path}: config.json")
        check_rows(vocabulary, rows, path)
        return True

    if (yield from _attempt(name, "vocabulary", check)) is None:
        return
    spare = rows - vocabulary.size + len(vocabulary.holes)
    more = f"; {spare} ids without text are never sampled" if spare > 0 else ""
    yield Finding(name, "vocabulary", f"{vocabulary.size} ids with text of {rows}{more}")
    added = "" if vocabulary.tokens <= rows else ", in a row that is added"
    yield Finding(name, "PAD", f"{tokenizer.pad_token} ({tokenizer.pad_token_id}){added}")
    ends = sorted({*ids_of(tokenizer.eos_token_id), *ids_of(config.get_text_config().eos_token_id)})
    yield Finding(name, "EOS", ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ends))


def _context(name: str, config: Any, wanted: int) -> Finding:
    context = context_tokens(config)
    if context is None:
        return Finding(name, "context", "its configuration does not say")
    if wanted > context:
        return Finding(name, "context", f"{context} tokens, and the run asks for {wanted}", refused=True)
    return Finding(name, "context", f"{context} tokens" + (f", the run asks for {wanted}" if wanted else ""))


def _size(name: str, model: nn.Module, dtype: str) -> Finding:
    count = sum(parameter.numel() for parameter in _once(model.parameters()))
    size = count * BYTES.get(dtype, 4)
    return Finding(name, "size", f"{count:,} parameters, {size / 2**30:.2f} GiB in {dtype}")


def _once(parameters: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter


def _kept(model: Any, dtype: str) -> Iterator[Finding]:
    """Keys and values of a token, as one forward call on the meta device shows them."""
    try:
        shape = CacheShape.of(model)
    except ModelError as error:
        yield Finding("policy", "KV cache", str(error), refused=True)
        return
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, NotImplementedError) as error:
        if "CausalMask" in str(error):
            says = f"{type(model).__name__} applies its attention mask in code of its own; it is not served"
            yield Finding("policy", "KV cache", says, refused=True)
        else:  # routing and the like need numbers, which the meta device has not
            yield Finding("policy", "KV cache", "known when its weights are loaded")
        return
    size = shape.token_bytes // shape.dtype.itemsize * BYTES.get(dtype, 4)
    heads = f"{shape.layers} layers × {shape.kv_heads} heads × {shape.head_dim}"
    yield Finding("policy", "KV cache", f"{heads}, {size / 1024:.1f} KiB per token")
