"""Tiny models, exact distributions and rollouts for the oracles: everything that can be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lodestar_services.learner.trainer import Trainer
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from lodestar.config import PpoConfig
from lodestar.model.attention import NAME
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion

EOS = 1
VERSION = WeightVersion("", 0, "")


def llama(vocab: int, seed: int, *, scalar: bool = False, hidden: int = 16, spread: float = 0.3) -> torch.nn.Module:
    """A one-layer Llama whose start distribution is far from uniform."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=spread,
        pad_token_id=None,
        eos_token_id=EOS,
        bos_token_id=0,
        num_labels=1,
    )
    config._attn_implementation = NAME
    torch.manual_seed(seed)
    if not scalar:
        return LlamaForCausalLM(config).eval()
    model = LlamaForSequenceClassification(config).eval()
    model.score.bias = torch.nn.Parameter(torch.zeros(1))
    return model


class PrefixTableConfig(PretrainedConfig):
    """Sizes of a PrefixTable."""

    model_type = "prefix-table"

    def __init__(self, vocab_size: int = 4, longest: int = 4, width: int = 4, **rest: Any) -> None:
        self.longest = longest
        self.width = width
        super().__init__(vocab_size=vocab_size, **rest)


class PrefixTable(PreTrainedModel):
    """A hidden state of its own for every prefix: can represent any distribution over short sequences."""

    config_class = PrefixTableConfig

    def __init__(self, config: PrefixTableConfig) -> None:
        super().__init__(config)
        self.states = torch.nn.Embedding((config.vocab_size + 1) ** config.longest, config.width)
        self.post_init()

    def forward(self, input_ids: Tensor, position_ids: Tensor, **_: Any) -> BaseModelOutputWithPast:
        """Prefixes are numbered in base vocab + 1, the first token the most significant digit."""
        tokens_T, positions_T = input_ids[0] + 1, position_ids[0]
        prefix_T = tokens_T.clone()
        for back in range(1, self.config.longest):
            earlier_T = tokens_T.roll(back).where(positions_T >= back, 0)
            prefix_T = prefix_T + earlier_T * (self.config.vocab_size + 1) ** back
        return BaseModelOutputWithPast(last_hidden_state=self.states(prefix_T)[None])


class PrefixTablePolicy(PreTrainedModel):
    """A softmax table per prefix."""

    config_class = PrefixTableConfig
    base_model_prefix = "table"

    def __init__(self, config: PrefixTableConfig) -> None:
        super().__init__(config)
        self.table = PrefixTable(config)
        self.lm_head = torch.nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head


class PrefixTableCritic(PreTrainedModel):
    """A value per prefix."""

    config_class = PrefixTableConfig
    base_model_prefix = "table"

    def __init__(self, config: PrefixTableConfig) -> None:
        super().__init__(config)
        self.table = PrefixTable(config)
        self.score = torch.nn.Linear(config.width, 1)
        self.post_init()


def tables(vocab: int, longest: int, seed: int, spread: float = 0.7) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A tabular policy with random start logits (N(0, spread²)) and a tabular critic that starts at 0."""
    torch.manual_seed(seed)
    policy = PrefixTablePolicy(PrefixTableConfig(vocab, longest, vocab)).eval()
    critic = PrefixTableCritic(PrefixTableConfig(vocab, longest, 1)).eval()
    with torch.no_grad():
        torch.nn.init.eye_(policy.lm_head.weight)
        torch.nn.init.normal_(policy.table.states.weight, std=spread)
        critic.table.states.weight.zero_()
        critic.score.weight.fill_(1.0)
        critic.score.bias.zero_()
    for fixed in (policy.lm_head.weight, critic.score.weight, critic.score.bias):
        fixed.requires_grad_(False)
    return policy, critic


class Responses:
    """Every response a policy can give to one prompt, and its exact probability."""

    def __init__(self, prompt: Sequence[int], responses: Sequence[tuple[int, ...]]) -> None:
        self.prompt = tuple(prompt)
        self.all = list(responses)
        sequences = [self.prompt + response for response in self.all]
        self.packed = PackedBatch.pack(sequences, [len(prompt)] * len(self.all), device="cpu")
        self.owner = torch.repeat_interleave(
            torch.arange(len(self.all)), torch.tensor([len(response) for response in self.all])
        )

    @torch.no_grad()
    def token_logprobs(self, policy: torch.nn.Module) -> list[Tensor]:
        logprobs_R, _ = response_logprobs(policy, self.packed, temperature=1.0)
        return list(logprobs_R.split([len(response) for response in self.all]))

    def log_distribution(self, policy: torch.nn.Module) -> Tensor:
        """log π(response) of each response, float64."""
        return torch.stack([part.double().sum() for part in self.token_logprobs(policy)])

    def optimum(self, start_log_p: Tensor, rewards: Tensor, beta: float) -> Tensor:
        """log π* with π* ∝ π₀·exp(r/β)."""
        return (start_log_p + rewards.double() / beta).log_softmax(0)

    def rollouts(
        self, policy: torch.nn.Module, reference: list[Tensor], rewards: Tensor, n: int, generator: torch.Generator
    ) -> list[Rollout]:
        """n responses sampled from the policy, as the workers would deliver them."""
        logprobs = self.token_logprobs(policy)
        p = torch.stack([part.double().sum() for part in logprobs]).softmax(0)
        drawn = torch.multinomial(p, n, replacement=True, generator=generator).tolist()
        samples = {
            i: Sample(
                token_ids=self.all[i],
                behaviour_logprobs=tuple(logprobs[i].tolist()),
                reference_logprobs=tuple(reference[i].tolist()),
                score=float(rewards[i]),
                finish_reason=FinishReason.EOS if self.all[i][-1] == EOS else FinishReason.LENGTH,
            )
            for i in set(drawn)
        }
        prompt = Prompt("p", "", self.prompt)
        return [
            Rollout(Ticket("run", "", 0, index, prompt, 1, 0, 0, 8, 1.0), VERSION, (samples[i],), "worker")
            for index, i in enumerate(drawn)
        ]


def sequences_of(symbols: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """Every response over ``symbols`` (EOS among them) that ends with EOS or at ``longest`` tokens."""
    others = [symbol for symbol in symbols if symbol != EOS]
    ended = [(*head, EOS) for length in range(longest) for head in itertools.product(others, repeat=length)]
    return ended + list(itertools.product(others, repeat=longest))


def train(
    trainer: Trainer,
    responses: Responses,
    rewards: Tensor,
    n: int,
    seed: int,
    watch: Callable[[int], None] | None = None,
) -> None:
    """All steps of the trainer's configuration against fixed rewards; the start policy is the reference."""
    generator = torch.Generator().manual_seed(seed)
    reference = responses.token_logprobs(trainer.policy)
    for step in range(trainer.config.steps):
        trainer.step(responses.rollouts(trainer.policy, reference, rewards, n, generator))
        if watch is not None:
            watch(step)


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p‖q) in nats."""
    return float((log_p.exp() * (log_p - log_q)).sum())


def config(**changes: object) -> PpoConfig:
    """PPO as the oracles need it: nothing that moves the optimum."""
    return PpoConfig.model_validate({"samples_per_prompt": 1, **changes})
