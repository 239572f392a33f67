"""The curves of the report: which metrics of metrics.jsonl belong together, and what each tells a reader."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One small multiple."""

    name: str
    title: str
    says: str


GROUPS: dict[str, tuple[Metric, ...]] = {
    "Reward": (
        Metric("reward", "Reward", "per sequence, KL penalty included"),
        Metric("score", "Score", "reward model's, after offset and clip"),
        Metric("score_std", "Score spread", "standard deviation in a batch; near zero, nothing is left to learn"),
        Metric("gold", "Held-out judge", "never trained on; down while the score goes up is hacking"),
        Metric("gold_std", "Judge's spread", "standard deviation in a batch"),
        Metric("over_optimised", "Over-optimisation alarm", "1 from the step at which the trends were significant"),
        Metric("score_disagreement", "Disagreement", "of a reward ensemble; growing, the policy left what it knows"),
    ),
    "Distance from the SFT model": (
        Metric("kl_sequence", "KL per sequence", "nats, of the policy that made the batch"),
        Metric("kl_after", "KL after the update", "nats per sequence, of the policy that the step left"),
        Metric("kl_k1", "KL per token, k1", "log π/π_ref, the estimate in the reward"),
        Metric("kl_k3", "KL per token, k3", "never negative"),
        Metric("kl_root", "√KL per sequence", "the distance that over-optimisation grows with"),
        Metric("kl_coefficient", "KL coefficient", "β"),
        Metric("kl_behaviour", "Sampler against learner", "KL of their log-probs; above 0.01 they disagree"),
        Metric("staleness", "Staleness", "steps that rollouts lagged behind"),
    ),
    "Policy": (
        Metric("entropy", "Entropy", "nats per token"),
        Metric("policy_loss", "Policy loss", "clipped"),
        Metric("clip_fraction", "Clip fraction", "share of tokens whose ratio was clipped"),
        Metric("kl_update", "KL of the update", "new against proximal policy, per token"),
        Metric("ratio_max", "Largest ratio", "of a batch"),
        Metric("ratio_min", "Smallest ratio", "of a batch"),
        Metric("policy_grad_norm", "Gradient norm", "policy, before clipping"),
        Metric("learning_rate", "Learning rate", "policy"),
        Metric("nothing_to_learn", "Nothing to learn", "1 where all advantages of a batch were equal"),
    ),
    "Critic": (
        Metric("value_loss", "Value loss", "clipped"),
        Metric("explained_variance", "Explained variance", "of returns by values; 1 is perfect"),
        Metric("value_clip_fraction", "Value clip fraction", "share of tokens whose value was clipped"),
        Metric("critic_grad_norm", "Gradient norm", "critic, before clipping"),
    ),
    "Responses": (
        Metric("response_length", "Response length", "tokens"),
        Metric("eos_rate", "Ended by itself", "share of responses with EOS"),
        Metric("tokens_per_second", "Tokens per second", "response tokens by wall time"),
    ),
}
