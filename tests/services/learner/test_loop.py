"""A whole run in one process: the real loop, collector, trainer, publisher and checkpoints, over the queue in memory.

The worker follows the published weights and samples from them with a plain forward pass; its scores are a fixed
function of the tokens. Everything a resumed run must reproduce bit for bit is here, without a server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from lodestar_services.learner.checkpoint import Checkpoints, check_weights, load_checkpoint
from lodestar_services.learner.journal import Journal
from lodestar_services.learner.loop import LearnerLoop
from lodestar_services.learner.publisher import WeightPublisher
from lodestar_services.learner.status import Controls, StatusBoard
from lodestar_services.learner.trainer import Trainer
from lodestar_services.learner.watch import OverOptimisationWatch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lodestar.config import LearnerConfig, PpoConfig
from lodestar.errors import NonFinite, ResumeRefused
from lodestar.model.attention import NAME
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.queue.memory import MemoryBroker, MemoryLearnerQueue, MemoryWorkerQueue
from lodestar.queue.port import Claim
from lodestar.records import FinishReason, ModelInfo, Prompt, Rollout, RunState, RunStatus, Sample, WeightVersion
from lodestar.rollouts.collector import Collector
from lodestar.rollouts.ledger import read_ledger, verify_ledger
from lodestar.rollouts.tickets import TicketSchedule
from lodestar.weights.checks import route
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.tensors import load_verified

VOCAB, EOS, LONGEST = 6, 1, 4
PROMPTS = [Prompt(f"p{i}", "", (0, 2 + i % 4)) for i in range(7)]
BASE = {"steps": 6, "batch": 8, "samples_per_prompt": 2, "max_tokens": LONGEST, "learning_rate": 3e-2}
SECTION = LearnerConfig(checkpoint_every=2)


def llama(kind: type, seed: int):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, num_labels=1, pad_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    config._attn_implementation = NAME
    model = kind(config).eval()
    if kind is LlamaForSequenceClassification:
        model.score.bias = torch.nn.Parameter(torch.zeros(1))
    return model


class Worker(threading.Thread):
    """Takes tickets, samples from the announced weights, finishes them."""

    def __init__(
        self,
        broker: MemoryBroker,
        folder: Path,
        score=lambda tokens: float(tokens.count(3)),
        heads=lambda step: {},
    ) -> None:
        super().__init__(daemon=True)
        self._broker = broker
        self._directory = WeightDirectory(folder / "weights")
        self._policy, self._reference = llama(LlamaForCausalLM, 0), llama(LlamaForCausalLM, 0)
        self._version = WeightVersion("", 0, "")
        self._score = score
        self._heads = heads
        self.stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        queue = MemoryWorkerQueue(self._broker, "run", "worker-0")
        while not self.stopping.is_set():
            for claim in await queue.take(3, 0.05):
                while not self.stopping.is_set() and not self._follow(claim.ticket):
                    await asyncio.sleep(0.002)
                await queue.finish(claim, self._rollout(claim))

    def _follow(self, ticket) -> bool:
        manifest = self._directory.announced()
        if manifest is not None and manifest.version != self._version:
            tensors = load_verified(self._directory, manifest, route(manifest, ""), {})
            with torch.no_grad():
                for name, parameter in self._policy.named_parameters():
                    parameter.copy_(tensors[name])
            self._version = manifest.version
        return self._version.incarnation == ticket.incarnation and self._version.step >= ticket.min_step

    @torch.no_grad()
    def _rollout(self, claim: Claim) -> Rollout:
        ticket = claim.ticket
        samples = []
        for i in range(ticket.n):
            noise = torch.Generator().manual_seed(ticket.seed + i)
            tokens: list[int] = []
            while len(tokens) < LONGEST and EOS not in tokens:
                batch = PackedBatch.pack([[*ticket.prompt.token_ids, *tokens, 0]], [len(tokens) + 2], device="cpu")
                hidden = self._policy.model(
                    input_ids=batch.tokens_T[None, :-1],
                    position_ids=batch.positions_T[None, :-1],
                    attention_context=_context(len(tokens) + 2),
                    use_cache=False,
                )[0][0, -1]
                probabilities = self._policy.lm_head(hidden).softmax(-1)
                tokens.append(int(torch.multinomial(probabilities, 1, generator=noise)))
            whole = PackedBatch.pack([[*ticket.prompt.token_ids, *tokens]], [2], device="cpu")
            behaviour, _ = response_logprobs(self._policy, whole, temperature=1.0)
            reference, _ = response_logprobs(self._reference, whole, temperature=1.0)
            reason = FinishReason.EOS if tokens[-1] == EOS else FinishReason.LENGTH
            score = self._score(tokens)
            logprobs = tuple(behaviour.tolist()), tuple(reference.tolist())
            samples.append(Sample(tuple(tokens), *logprobs, score, reason, heads=self._heads(ticket.step)))
        return Rollout(ticket, self._version, tuple(samples), "worker-0")


def _context(length: int):
    from lodestar_kernels.attention import PackedLayout

    from lodestar.model.packed import PackedAttention

    return PackedAttention(PackedLayout.from_lengths([length], "cpu"), per_sequence=False)


class Run:
    """One start of a learner in ``folder``; a second one resumes."""

    def __init__(self, root: Path, loop: asyncio.AbstractEventLoop, incarnation: str = "aaaa", **ppo) -> None:
        self.folder = root
        self.broker = MemoryBroker()
        config = PpoConfig.model_validate(BASE | ppo)
        checkpoints = Checkpoints(self.folder / "checkpoints", SECTION.keep_checkpoints)
        newest = checkpoints.latest()
        state = load_checkpoint(newest) if newest else None
        queue = MemoryLearnerQueue(self.broker)
        queue.open("run", incarnation)
        collector = Collector(queue, TicketSchedule(PROMPTS, config, run="run", seed=5), incarnation=incarnation)
        policy, critic = llama(LlamaForCausalLM, 0), llama(LlamaForSequenceClassification, 1)
        self.trainer = Trainer(config, policy, critic, seed=5, failures=root / "failures")
        self.watch = OverOptimisationWatch(config.watch, "gold")
        if state:
            self.trainer.load_state_dict(state["trainer"])
            collector.load_state_dict(state["collector"])
            self.watch.load_state_dict(state["watch"])
        model = ModelInfo("run", WeightVersion("", 0, ""), "")
        self.board = StatusBoard(RunStatus("run", model, RunState.STARTING, 0, config.steps, 0, config.tickets), loop)
        self.controls = Controls()
        self.kept: list[RunState] = []
        """The state in which the trained policy was written, once it was."""
        self.journal = Journal(self.folder, state["journal"] if state else None)
        self.loop = LearnerLoop(
            ppo=config,
            section=SECTION,
            collector=collector,
            trainer=self.trainer,
            publisher=WeightPublisher(
                self.folder / "weights", run="run", incarnation=incarnation, tokenizer_hash="", section=SECTION
            ),
            journal=self.journal,
            checkpoints=checkpoints,
            watch=self.watch,
            digests={},
            keep_policy=lambda: self.kept.append(self.board.status.state),
            board=self.board,
            controls=self.controls,
            step=state["step"] if state else 0,
        )

    @contextmanager
    def worker(self, **options) -> Iterator[None]:
        worker = Worker(self.broker, self.folder, **options)
        worker.start()
        try:
            yield
        finally:
            worker.stopping.set()
            worker.join(5)

    async def finish(self, **options) -> None:
        with self.worker(**options), closing(self.journal):
            await asyncio.to_thread(self.loop.run)

    def curve(self) -> list[dict]:
        timing = ("time", "seconds", "tokens_per_second", "incarnation")
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key not in timing} for row in rows]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.trainer.policy.named_parameters()}


@pytest.fixture
async def start(tmp_path):
    loop = asyncio.get_running_loop()
    return lambda name, **options: Run(tmp_path / name, loop, **options)


async def test_a_run_learns_and_leaves_one_ledger_line_per_ticket(start):
    run = start("a", batch=32, samples_per_prompt=8)
    await run.finish()
    curve = run.curve()
    assert [row["step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["score"] > curve[0]["score"]
    assert verify_ledger(run.folder / "ledger.jsonl", tickets=4, steps=6) == []
    assert run.board.status.state is RunState.FINISHED
    assert run.kept == [RunState.OPTIMISING], "whoever hears that the run is finished finds the policy"
    assert curve[-1]["tickets"] == {
        "issued": 24, "trained": 24, "failed": 0, "superseded": 0, "duplicates_refused": 0
    }  # fmt: skip


async def test_every_line_of_the_metrics_is_json_and_says_what_the_scores_were_lowered_by(start):
    run = start("a", steps=2)
    run.trainer.offset = -12.58
    step = run.trainer.step
    run.trainer.step = lambda rollouts: step(rollouts) | {"kl_k3": math.inf}
    await run.finish()
    rows = [
        json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["offset"] for row in rows] == [-12.58, -12.58]
    assert [(row["kl_k3"], row["not_finite"]) for row in rows] == [(None, {"kl_k3": "inf"})] * 2
    assert rows[0]["kl_sequence"] == pytest.approx(0.0, abs=1e-5), "of the policy that made the batch"
    assert rows[0]["kl_after"] > 1e-3, "of the policy that the step left"


async def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(start):
    whole = start("whole")
    await whole.finish()
    broken = start("broken")

    def die(row, settled):
        if row["step"] == 6:  # two steps after the last checkpoint
            raise KeyboardInterrupt
        record(row, settled)

    record, broken.journal.record = broken.journal.record, die
    with pytest.raises(KeyboardInterrupt):
        await broken.finish()
    resumed = start("broken", incarnation="bbbb")
    await resumed.finish()
    assert resumed.curve() == whole.curve()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    assert verify_ledger(resumed.folder / "ledger.jsonl", tickets=4, steps=6) == []
    entries = read_ledger(resumed.folder / "ledger.jsonl")
    assert {entry.incarnation for entry in entries if entry.step < 4} == {"aaaa"}
    assert {entry.incarnation for entry in entries if entry.step >= 4} == {"bbbb"}
    whole_tokens = {entry.id: entry.tokens for entry in read_ledger(whole.folder / "ledger.jsonl")}
    assert {entry.id: entry.tokens for entry in entries} == whole_tokens


async def test_stale_rollouts_are_used_up_to_the_limit(start):
    run = start("stale", max_staleness=1)
    await run.finish()
    assert all(0 <= row["staleness"] <= 1 for row in run.curve())
    assert max(row["staleness"] for row in run.curve()) > 0
    assert verify_ledger(run.folder / "ledger.jsonl", tickets=4, steps=6) == []


async def test_the_start_is_checkpointed_before_the_first_step(start):
    run = start("first")
    run.controls.stop()
    await run.finish()
    state = load_checkpoint(run.folder / "checkpoints" / "step-000000")
    assert (state["step"], state["journal"]) == (0, {"metrics": 0, "ledger": 0})
    rest = start("first", incarnation="bbbb")
    await rest.finish()
    assert [row["step"] for row in rest.curve()] == [1, 2, 3, 4, 5, 6]


async def test_a_pause_holds_the_run_and_a_checkpoint_can_be_had_meanwhile(start):
    run = start("paused")
    run.controls.pause()
    finishing = asyncio.create_task(run.finish())
    while run.board.status.state is not RunState.PAUSED:
        await asyncio.sleep(0.01)
    path = await asyncio.to_thread(run.controls.request_checkpoint, 10)
    assert load_checkpoint(path)["step"] == 0
    run.controls.resume()
    await asyncio.wait_for(finishing, 30)
    assert len(run.curve()) == 6


async def test_a_stop_checkpoints_and_a_resumed_run_goes_on_from_there(start):
    run = start("stopped")
    finishing = asyncio.create_task(run.finish())
    while run.board.status.step < 3:
        await asyncio.sleep(0.005)
    run.controls.stop()
    await asyncio.wait_for(finishing, 30)
    assert run.board.status.reason == "stopped on request"
    assert 3 <= len(run.curve()) < 6
    rest = start("stopped", incarnation="bbbb")
    await rest.finish()
    assert [row["step"] for row in rest.curve()] == [1, 2, 3, 4, 5, 6]
    assert verify_ledger(rest.folder / "ledger.jsonl", tickets=4, steps=6) == []


async def test_a_learner_told_to_leave_checkpoints_and_does_not_end_its_run(start):
    run = start("left")
    finishing = asyncio.create_task(run.finish())
    while run.board.status.step < 3:
        await asyncio.sleep(0.005)
    run.controls.leave()
    await asyncio.wait_for(finishing, 30)
    assert (run.loop.over, run.kept, run.board.status.state) == (False, [], RunState.STOPPED)
    assert load_checkpoint(Checkpoints(run.folder / "checkpoints", 2).latest())["step"] == len(run.curve()) < 6
    rest = start("left", incarnation="bbbb")
    await rest.finish()
    assert (rest.loop.over, rest.board.status.state) == (True, RunState.FINISHED)
    assert verify_ledger(rest.folder / "ledger.jsonl", tickets=4, steps=6) == []


async def test_a_checkpoint_holds_the_manifest_of_its_weights(start):
    run = start("manifest")
    await run.finish()
    state = load_checkpoint(Checkpoints(run.folder / "checkpoints", 2).latest())
    announced = WeightDirectory(run.folder / "weights").announced()
    assert state["weights"]["version"] == {"incarnation": "aaaa", "step": 6, "digest": announced.version.digest}
    assert state["weights"]["tensors"] == announced.tensors
    check_weights(state, run.trainer.policy)
    with torch.no_grad():
        next(run.trainer.policy.parameters()).view(-1)[0] += 1
    with pytest.raises(ResumeRefused, match="checkpoint of step 6 is damaged: its policy hashes to"):
        check_weights(state, run.trainer.policy)


async def test_a_run_whose_step_failed_half_way_goes_back_to_its_checkpoint_and_ends_as_if_it_had_not(start):
    whole = start("whole", epochs=2)
    await whole.finish()
    broken, gradients = start("broken", epochs=2), []

    def poison(gradient):
        gradients.append(1)
        return gradient * math.nan if len(gradients) == 12 else gradient  # the sixth step's second epoch

    broken.trainer.policy.lm_head.weight.register_hook(poison)
    with pytest.raises(NonFinite, match=r"step 5 failed half-way: .*step-000005.json; resuming goes back"):
        await broken.finish()
    assert (broken.folder / "failures" / "step-000005.json").stat().st_size > 0
    assert [path.name for path in Checkpoints(broken.folder / "checkpoints", 9).all()][-1] == "step-000004"
    resumed = start("broken", incarnation="bbbb", epochs=2)
    await resumed.finish()
    assert resumed.curve() == whole.curve()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    assert verify_ledger(resumed.folder / "ledger.jsonl", tickets=4, steps=6) == []


async def test_a_reward_that_is_no_number_undoes_the_step_and_saves_its_batch(start):
    run = start("nan")
    before = run.weights()
    with pytest.raises(NonFinite, match=r"step 0 was undone.*step-000000.json"):
        await run.finish(score=lambda tokens: math.nan)
    assert (run.folder / "failures" / "step-000000.json").stat().st_size > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.weights().items())
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000000"]
    assert NonFinite.exit_code == 3


@pytest.mark.parametrize("stop", [True, False])
async def test_the_over_optimisation_alarm_ends_the_run_where_it_is_asked_to(start, stop):
    options = {"steps": 9, "watch": {"window": 6, "significance": 0.1, "stop": stop}}
    rising = itertools.count()
    falling = {"score": lambda tokens: float(next(rising)), "heads": lambda step: {"gold": -float(step)}}
    run = start("watched", **options)
    await run.finish(**falling)
    curve = run.curve()
    assert [row["over_optimised"] for row in curve[:6]] == [0, 0, 0, 0, 0, 1]
    assert [row["gold"] for row in curve[:3]] == [0, -1, -2]
    assert curve[2]["sources"] == {"gold": -2}
    assert len(curve) == (6 if stop else 9)
    assert run.board.status.metrics["over_optimised"] == 1
    said = run.board.status.reason
    assert said.startswith("stopped at the over-optimisation alarm: over 6 steps the score rose") if stop else not said
    again = start("watched", incarnation="bbbb", **options)
    assert again.watch.alarm == run.watch.alarm is not None
    await again.finish(**falling)
    assert again.curve() == curve, "a run that its alarm has ended does not go on when it is resumed"


async def test_a_resumed_run_watches_as_if_it_had_never_stopped(start):
    options = {"steps": 6, "watch": {"window": 6, "significance": 0.1}}

    def judge(step: int) -> dict[str, float]:
        return {"gold": -float(step)}

    whole = start("whole", **options)
    await whole.finish(heads=judge)
    broken = start("broken", **options)
    finishing = asyncio.create_task(broken.finish(heads=judge))
    while broken.board.status.step < 3:
        await asyncio.sleep(0.005)
    broken.controls.stop()
    await asyncio.wait_for(finishing, 30)
    rest = start("broken", incarnation="bbbb", **options)
    await rest.finish(heads=judge)
    assert rest.curve() == whole.curve()
    assert rest.watch.state_dict() == whole.watch.state_dict()
    assert len(whole.watch.state_dict()["history"]) == 6
