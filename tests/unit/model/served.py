"""Every type against transformers itself: computed rightly or refused in a sentence, and the table that says which.

``python -m tests.unit.model.served`` writes docs/models.md.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.errors import ModelError
from lodestar.model.fused import fuse
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.loading import load_causal_lm, load_scalar_model, save_model
from lodestar.model.packed import PackedBatch, head_loss, response_logprobs, response_states, sequence_scores
from lodestar.records import SamplingParams
from tests.unit.model import zoo
from tests.unit.model.worlds import words

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
NATS = 1e-3
LENGTHS = (33, 20, 5)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened to a type: ``Verdict("mamba", "MambaForCausalLM", trains="0 of 4 layers …")``."""

    model_type: str
    name: str
    trains: str = ""
    """Why log-probs and gradients are refused; empty where they are right."""
    serves: str = ""
    """Why the engine refuses it; empty where it is right."""
    scores: str = ""
    """Why it gets no scalar head; empty where it is right."""


def judge(model_type: str, **more: Any) -> Verdict:
    """Compare log-probs, gradients, generation and scores with transformers' own attention.

    Raises:
        AssertionError: something is computed wrongly.
    """
    plain = zoo.tiny_model(zoo.tiny_config(model_type, **more))
    name = type(plain).__name__
    tokenizer = words(zoo.VOCAB)
    torch.manual_seed(1)
    sequences = [torch.randint(3, 150, (length,)).tolist() for length in LENGTHS]
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_model(plain, tokenizer, folder)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # transformers itself cannot save some
            return Verdict(model_type, name, *(f"cannot be saved ({type(error).__name__})",) * 3)
        try:
            ours = load_causal_lm(folder)
        except ModelError as error:
            return Verdict(model_type, name, *(_reason(error, folder),) * 3)
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        fuse(ours)
        _compare_training(plain, ours, sequences, model_type)
        serves = _compare_engine(plain, load_causal_lm(folder), tokenizer, model_type)
        scores = _compare_scores(ours, tokenizer, sequences, Path(folder) / "scalar", model_type)
    return Verdict(model_type, name, "", serves, scores)


def _logprobs(plain: Any, sequence: list[int]) -> torch.Tensor:
    logp_SV = plain(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float().log_softmax(-1)
    return logp_SV[:-1].gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]


def _compare_training(plain: Any, ours: Any, sequences: list[list[int]], model_type: str) -> None:
    batch = PackedBatch.pack(sequences, [1] * len(sequences), device="cpu")
    expected_R = torch.cat([_logprobs(plain, sequence) for sequence in sequences])
    with torch.no_grad():
        logprobs_R, _ = response_logprobs(ours, batch, temperature=1.0, whole=True)
    assert float((logprobs_R - expected_R).abs().max().detach()) < NATS, f"{model_type}: log-probs"
    for model, loss in (
        (plain, expected_R.sum()),
        (ours, head_loss(ours, response_states(ours, batch), batch.targets_R, lambda _, logp, __: logp.sum(),
                         temperature=1.0, whole=True)[0]),
    ):  # fmt: skip
        model.zero_grad()
        loss.backward()
    theirs = dict(plain.named_parameters())
    for key, parameter in ours.named_parameters():
        wanted = theirs[key].grad
        if wanted is None or parameter.grad is None:
            nothing = [grad for grad in (wanted, parameter.grad) if grad is not None]
            assert all(float(grad.abs().max()) == 0 for grad in nothing), f"{model_type}: gradient of {key}"
            continue
        gap = float((parameter.grad - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
        assert gap < 1e-3, f"{model_type}: gradient of {key} off by {gap:.2g}"


def _compare_engine(plain: Any, ours: Any, tokenizer: Any, model_type: str) -> str:
    try:
        config = PolicyConfig(max_sequences=4, kv_cache_tokens=512, prefill_tokens=24)
        engines = [Engine(ours, tokenizer, config, paged=paged) for paged in (False, True)]
    except ModelError as error:
        return _reason(error, "")
    for engine in engines:
        requests = [
            engine.request(prompt, SamplingParams(16, seed=3, ignore_eos=True))
            for prompt in ([5, 6, 7], list(range(10, 30)))
        ]
        for request in requests:
            engine.add(request)
        while engine.scheduler:
            engine.step()
        for request in requests:
            (sample,) = request.sequences
            with torch.no_grad():
                expected = _logprobs(plain, sample.tokens)[len(request.prompt_ids) - 1 :]
            assert float((torch.tensor(sample.logprobs) - expected).abs().max()) < NATS, f"{model_type}: engine"
    return ""


def _compare_scores(ours: Any, tokenizer: Any, sequences: list[list[int]], folder: Path, model_type: str) -> str:
    try:
        scalar = scalar_from_causal_lm(ours, tokenizer, seed=0)
    except ModelError as error:
        return _reason(error, "")
    save_model(scalar, tokenizer, folder)
    served = load_scalar_model(folder)
    batch = PackedBatch.pack(sequences, [1] * len(sequences), device="cpu")
    with torch.no_grad():
        scores_B = sequence_scores(served, batch)
        served.set_attn_implementation("eager")
        expected = [served(input_ids=torch.tensor([one]), use_cache=False).logits[0, 0] for one in sequences]
    assert float((scores_B - torch.stack(expected)).abs().max()) < NATS, f"{model_type}: scores"
    return ""


def _reason(error: ModelError, folder: str) -> str:
    return str(error).removeprefix(f"{folder}: ")


# --- the table -----------------------------------------------------------------------------------------------------
INTRODUCTION = """# Models that are served
Written by `python -m tests.unit.model.served` with transformers {version}; a test compares it with what happens. Each
type was made tiny with random weights, windows and caps on, and compared with transformers' own attention in float32:
log-probs within 0.001 nats, gradients, generation, and scores of a scalar head. *refused* is a sentence when the model
is loaded, and before that in the preflight.

| type | class | trains | generates | scores |
|---|---|---|---|---|
"""


def page(verdicts: Iterator[Verdict]) -> str:
    """docs/models.md."""
    import transformers

    rows, reasons = [], []
    for one in verdicts:
        marks = ["refused" if says else "yes" for says in (one.trains, one.serves, one.scores)]
        rows.append(f"| {one.model_type} | {one.name} | {' | '.join(marks)} |")
        said = dict.fromkeys(says for says in (one.trains, one.serves, one.scores) if says)
        reasons += [f"- {one.model_type}: {says}" for says in said]
    body = INTRODUCTION.format(version=transformers.__version__) + "\n".join(rows)
    return body + "\n\n## Why\n" + "\n".join(reasons) + "\n"


def all_verdicts() -> Iterator[Verdict]:
    """Of every type that can be made tiny."""
    for model_type in zoo.types():
        if model_type not in zoo.TOO_LARGE:
            yield judge(model_type)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PAGE.write_text(page(all_verdicts()), encoding="utf-8")
