"""Log-probabilities of given tokens without holding [tokens, vocab] logits."""

from lodestar_kernels.logprob.op import logprobs, logprobs_from_logits
from lodestar_kernels.logprob.reference import LogProbOutput

__all__ = ["LogProbOutput", "logprobs", "logprobs_from_logits"]
