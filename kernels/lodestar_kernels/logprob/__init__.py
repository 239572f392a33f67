"""Log-probabilities of given tokens without holding [tokens, vocab] logits."""

from lodestar_kernels.logprob.op import kl_divergence, logprobs, logprobs_from_logits, token_loss
from lodestar_kernels.logprob.reference import LogProbOutput
from lodestar_kernels.logprob.token_loss import TokenLoss

__all__ = ["LogProbOutput", "TokenLoss", "kl_divergence", "logprobs", "logprobs_from_logits", "token_loss"]
