"""What services cost: a PPO iteration through gRPC and Redis against the same functions called in one process.

Both sides generate with the same engine, score with the same packed forward passes and update with the same trainer,
on models of the demo's size and of examples/hh.yaml's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import LEARNING_RATE, iterations_of, parser, report
from lodestar_services.learner.critic import critic_from
from lodestar_services.learner.trainer import Trainer

from lodestar.config import RunConfig
from lodestar.crew.inline import run_with
from lodestar.crew.local import Local
from lodestar.data.files import read_prompts
from lodestar.data.rows import encode_prompts
from lodestar.engine.engine import Engine
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.model.loading import load_causal_lm, load_scalar_model, load_tokenizer, named_tensors
from lodestar.model.packed import PackedBatch, response_logprobs, sequence_scores
from lodestar.recipe.plan import plan
from lodestar.records import FinishReason, Prompt, Rollout, Sample, SamplingParams, Ticket, WeightVersion
from lodestar.rollouts.tickets import TicketSchedule

SIZES = {
    "demo model": {"hidden": 96, "layers": 3, "vocab": 256, "eos_bias": 2.5, "batch": 128, "tokens": 40},
    "hh model": {"hidden": 192, "layers": 4, "vocab": 4096, "eos_bias": 4.0, "batch": 64, "tokens": 64},
}


def config(root: Path, size: dict[str, float], steps: int) -> RunConfig:
    """The same for both sides."""
    return tiny_config(
        root,
        "bench",
        ppo={
            "steps": steps,
            "batch": size["batch"],
            "max_tokens": size["tokens"],
            "learning_rate": LEARNING_RATE,
            "score": {"offset": "none"},
        },
        policy={"threads": 2},
        learner={"threads": 2, "checkpoint_every": 1000},
        rollout={"in_flight": size["batch"]},
    )


def through_services(run: RunConfig) -> tuple[float, float]:
    """Median seconds of an iteration and of its update alone, the first left out."""
    rows, iterations = iterations_of(run_with(Local, run))
    return statistics.median(iterations), statistics.median(row["seconds"]["optimise"] for row in rows[1:])


class OneProcess:
    """The iteration as a single program would do it."""

    def __init__(self, run: RunConfig) -> None:
        torch.set_num_threads(2)
        self._ppo = plan(run).step("ppo").stage
        start, reward = run.model.path, run.given["reward_model"]
        tokenizer = load_tokenizer(start)
        policy, self._reference, generator = (load_causal_lm(start) for _ in range(3))
        self._reward = load_scalar_model(reward)
        critic = critic_from(
            self._ppo.critic, reward_model_path=reward, policy=policy, tokenizer=tokenizer, offset=0.0, seed=run.seed
        )
        self._trainer = Trainer(self._ppo, policy, critic, seed=run.seed)
        self._engine = Engine(generator, tokenizer, run.services.policy, version=WeightVersion("", 0, ""))
        prompts = read_prompts(Path(run.given["prompts"]) / "ppo.jsonl")
        encoded = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
        prompts = [Prompt(p.id, p.text, ids) for p, ids in zip(prompts, encoded, strict=True)]
        self._schedule = TicketSchedule(prompts, self._ppo, run=run.name, seed=run.seed)

    def seconds(self) -> tuple[float, float]:
        """Median seconds of an iteration and of its update alone, the first left out."""
        iterations, updates = [], []
        for step in range(self._ppo.steps):
            began = time.perf_counter()
            tickets = [self._schedule.ticket("", step, index) for index in range(self._ppo.tickets)]
            rollouts = self._roll_out(tickets, step)
            collected = time.perf_counter()
            self._trainer.step(rollouts)
            updates.append(time.perf_counter() - collected)
            self._engine.swap(named_tensors(self._trainer.policy), WeightVersion("", step + 1, ""))
            iterations.append(time.perf_counter() - began)
        return statistics.median(iterations[1:]), statistics.median(updates[1:])

    @torch.inference_mode()
    def _roll_out(self, tickets: Sequence[Ticket], step: int) -> list[Rollout]:
        sequences = []
        for ticket in tickets:
            sampling = SamplingParams(ticket.max_tokens, seed=ticket.seed, logprobs=True)
            request = self._engine.request(ticket.prompt.token_ids, sampling)
            self._engine.add(request)
            sequences += request.sequences
        while any(sequence.finish_reason is None for sequence in sequences):
            self._engine.step()
        batch = PackedBatch.pack([s.tokens for s in sequences], [s.prompt_tokens for s in sequences], device="cpu")
        scores = sequence_scores(self._reward, batch).tolist()
        reference_R, _ = response_logprobs(self._reference, batch, temperature=self._ppo.temperature)
        references = reference_R.split(list(batch.response_lengths))
        version = WeightVersion("", step, "")
        return [
            Rollout(
                ticket,
                version,
                (
                    Sample(
                        tuple(sequence.response),
                        tuple(sequence.logprobs),
                        tuple(reference.tolist()),
                        score,
                        FinishReason(sequence.finish_reason),
                    ),
                ),
                "",
            )
            for ticket, sequence, reference, score in zip(tickets, sequences, references, scores, strict=True)
        ]


def compare(size: dict[str, float], arguments: argparse.Namespace) -> dict[str, float]:
    """Both sides in turn, each from the same start."""
    services, alone = [], []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            run = config(root, size, arguments.iterations + 1)
            shape = {key: size[key] for key in ("hidden", "layers", "vocab", "eos_bias")}
            write_tiny_models(root / "tiny", **shape, prompts=256, prompt_tokens=(8, 16))
            services.append(through_services(run))
            alone.append(OneProcess(run).seconds())
    figures = {}
    for side, pairs in {"services": services, "one process": alone}.items():
        iterations, updates = zip(*pairs, strict=True)
        figures |= {f"{side} s": statistics.median(iterations), f"{side}, update s": statistics.median(updates)}
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(services, alone, strict=True))
    return {**figures, "ratio": ratio}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--iterations", type=int, default=8, help="timed iterations per start")
    arguments = options.parse_args()
    sizes = SIZES
    if arguments.small:
        sizes = {"tiny model": SIZES["demo model"] | {"hidden": 32, "layers": 1, "batch": 8, "tokens": 8}}
    rows = [{"case": case, **compare(size, arguments)} for case, size in sizes.items()]
    report("service_overhead", rows, arguments, "ratio: through gRPC and Redis ÷ in one process; goals 1.10 and 1.05")


if __name__ == "__main__":
    main()
