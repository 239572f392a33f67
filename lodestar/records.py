"""The records that travel through Lodestar, and the legend of shape suffixes.

Shape suffixes used in the whole repository, on tensors and in docstrings:

    B  sequences in a batch          T  tokens of a packed batch (all sequences one after another)
    R  response tokens of a batch    V  vocabulary            H  hidden size
    N  attention heads               D  size of one head      S  tokens of one sequence

Log-probs are natural logarithms in float32; seconds are seconds; a *step* is one PPO iteration and version
``step = k`` is the policy after k of them. Every record that came from a policy carries the version that made
it; staleness is computed where it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


@dataclass(frozen=True, slots=True, order=True)
class WeightVersion:
    """One set of policy weights: ``WeightVersion("9f31c2aa", 12, "5d1e…")``."""

    incarnation: str
    """Random id of the learner start that published it; empty for the start model nobody published."""
    step: int
    """PPO steps behind these weights, ≥ 0."""
    digest: str
    """Hex sha256 over the sha256 of every tensor, in name order."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What answered a request: ``ModelInfo("runs/demo/sft/policy", version, "ab12…")``."""

    name: str
    version: WeightVersion
    tokenizer_hash: str


class FinishReason(StrEnum):
    """Why a response ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


class Purpose(StrEnum):
    """What a request is for; training traffic is held to the temperature-only distribution."""

    SERVING = "serving"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn: ``ChatMessage("user", "How do magnets work?")``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample: ``SamplingParams(max_tokens=64, temperature=0.7, top_p=0.9, seed=1)``."""

    max_tokens: int
    """New tokens per sample at most, ≥ 1."""
    n: int = 1
    min_tokens: int = 0
    """EOS and stops are forbidden before this many tokens."""
    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens with p ≥ min_p · max p."""
    seed: int | None = None
    """Noise is a pure function of (seed, sample index, position); None draws a seed."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    """Return both log-probs of every token."""
    top_logprobs: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample of a prompt."""

    token_ids: tuple[int, ...]
    """Shape [S]; ends with the EOS token when finish_reason is EOS."""
    text: str
    """Decoded, without EOS and without the stop string."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    """Shape [S]: log softmax(logits / temperature) at each token; PPO's behaviour policy."""
    processed_logprobs: tuple[float, ...] = ()
    """Shape [S]: of the distribution sampled from, after top_p, top_k, min_p and logit_bias."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """All samples of one prompt and what made them."""

    model: ModelInfo
    prompt_tokens: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TokenCandidate:
    """One of the most likely tokens at a position: ``TokenCandidate(17, -0.3)``."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """One or more consecutive tokens of one sample, as a stream brings them."""

    model: ModelInfo
    sample_index: int
    """0 … n − 1; the chunks of different samples interleave."""
    token_ids: tuple[int, ...]
    text: str
    """What these tokens add; may lag until a character or stop string is decided."""
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    """Set on a sample's last chunk."""
    logprobs: tuple[float, ...] = ()
    """See Completion.logprobs."""
    processed_logprobs: tuple[float, ...] = ()
    """See Completion.processed_logprobs."""
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...] = ()
    """Per position, the most likely first; empty unless asked for."""
    token_steps: tuple[int, ...] = ()
    """Weight steps of the tokens when they differ from model.version.step."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a server serves; the fields a role does not have keep their defaults."""

    model: ModelInfo
    context_tokens: int
    """Prompt + completion at most."""
    vocab_size: int = 0
    parameters: int = 0
    dtype: str = ""
    heads: tuple[str, ...] = ()
    """Reward: names of the scores it gives."""
    ensemble_size: int = 1
    """Reward: models behind the mean."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens to compute log-probs of: ``Scored((5, 8, 13, 1), prompt_tokens=2)`` asks for the last two."""

    token_ids: tuple[int, ...]
    """Prompt and completion, shape [S]."""
    prompt_tokens: int
    """How many of them are the prompt, ≥ 1."""


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Shape [S − prompt_tokens] each; entropy in nats, empty unless asked for."""

    logprobs: tuple[float, ...]
    entropy: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[TokenCandidate, ...], ...] = ()
    """Per position, the most likely first; empty unless asked for."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probs of several sequences, in the order asked, and the model they are of."""

    model: ModelInfo
    sequences: tuple[TokenLogProbs, ...]


@dataclass(frozen=True, slots=True)
class Datum:
    """A sequence of N tokens to train on: ``Datum((5, 8, 13), (8, 13, 1), weights=(0.0, 1.0, 1.0))``."""

    token_ids: tuple[int, ...]
    """What the model reads."""
    targets: tuple[int, ...]
    """[N]: what it should say after each; for text the token that follows."""
    weights: tuple[float, ...] = ()
    """[N]: how much each target counts; empty: 1."""
    logprobs: tuple[float, ...] = ()
    """[N], nats: of the targets under the sampler (importance_sampling, ppo) or the reference (dpo)."""
    advantages: tuple[float, ...] = ()
    """[N]: of the targets (importance_sampling, ppo)."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters of a model in training: ``Lora(rank=16, attention=True)``; no part named means all of them."""

    rank: int
    alpha: int = 32
    """The update is multiplied by alpha / rank."""
    attention: bool = False
    mlp: bool = False
    head: bool = False
    seed: int = 0
    """Of the adapters' first weights."""


@dataclass(frozen=True, slots=True)
class TrainingModel:
    """A model in training: its ``model.name`` names it in calls, and ``model.version.step`` counts its steps."""

    model: ModelInfo
    base: str
    """What it began as."""
    context_tokens: int
    vocab_size: int
    trainable_parameters: int
    accumulated: int = 0
    """Sequences whose gradients wait for a step."""
    lora: Lora | None = None
    """None: all weights are trained."""


@dataclass(frozen=True, slots=True)
class OptimParams:
    """One step of AdamW: ``OptimParams(1e-4)``."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Of matrices alone."""
    max_grad_norm: float = 0.0
    """0: no clip."""


@dataclass(frozen=True, slots=True)
class LossResult:
    """What a loss was: ``LossResult(model, 3.2, ((-0.1, -3.1),))``."""

    model: ModelInfo
    loss: float
    """The sum over all tokens, or pairs."""
    sequences: tuple[tuple[float, ...], ...]
    """Log-probs of each sequence's targets, nats."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Whole samples of one prompt by a model in training."""

    model: ModelInfo
    samples: tuple[GenerationChunk, ...]
    """By sample_index."""
    prompt: TokenLogProbs | None = None
    """Of the prompt's tokens but the first, when asked for."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """What one token adds to a text: ``TokenPiece(b" blue", b"blue", "")``, ``TokenPiece(b"", b"", "</s>")``."""

    text: bytes
    """After other tokens; UTF-8 that may end or begin inside a character."""
    at_start: bytes
    """As the first of a text."""
    special: str = ""
    """Name of a special token, which adds no text."""


@dataclass(frozen=True, slots=True)
class Detokenized:
    """Text of token ids, and the ids one by one."""

    text: str
    """Special tokens are left out."""
    pieces: tuple[TokenPiece, ...]
    """Shape [S]."""


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """What a reward model scores: both halves as text, or both as its own token ids.

    ``ScoreItem("how are you ?", "very well")`` or ``ScoreItem((4, 9, 2), (31, 1))``.
    """

    prompt: str | tuple[int, ...]
    completion: str | tuple[int, ...]
    """As token ids with EOS when it ended with one."""
    cut_off: bool = False
    """Text only: no EOS follows, as for a response that reached max_tokens."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """See Prompt.columns."""
    messages: tuple[ChatMessage, ...] = ()
    """See Prompt.messages."""


@dataclass(frozen=True, slots=True)
class Score:
    """A reward model's opinion of one completion: ``Score(1.3, mean=1.3)``."""

    score: float
    mean: float
    standard_deviation: float = 0.0
    heads: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of several completions, in the order asked, and the model that gave them."""

    model: ModelInfo
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """How one policy server is doing."""

    model: ModelInfo
    paused: bool
    running_sequences: int
    waiting_sequences: int
    kv_blocks_used: int
    kv_blocks_total: int
    last_swap_pause_seconds: float
    refusal: str = ""
    """Why the last offered weights were not taken."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy answers: ``Prompt("synthetic-17", "what color is the sky ?", (4, 9, …))``."""

    id: str
    text: str
    token_ids: tuple[int, ...] = ()
    """Shape [S], the policy's tokens; empty before tokenization."""
    messages: tuple[ChatMessage, ...] = ()
    """What the text was rendered from; empty where it was a string. A reward model of another family renders them."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the prompt's row as JSON has them, for functions as rewards: ``{"answer": "42"}``."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the reply to imitate (SFT)."""

    prompt: str
    completion: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of two completions was preferred: ``Choice(0, 2, label=1.0)`` says that the first beat the third."""

    first: int
    """Index of a completion."""
    second: int
    label: float
    """Probability that ``first`` is better: 1, 0, 0.5 for a tie, or a share of votes."""
    strength: float = 0.0
    """How clear it was, ≥ 0, in the annotators' own grades: 1 slightly better, 2 better; 0 where none was given."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """All completions from best to worst: ``Ranking(((2,), (0, 3), (1,)))`` has 0 and 3 tied in the second place."""

    order: tuple[tuple[int, ...], ...]
    """Every index of a completion exactly once."""

    @property
    def places(self) -> tuple[int, ...]:
        """The place of each completion, 0 is best, tied ones share theirs: ``(1, 2, 0, 1)`` for the example."""
        place_of = {index: place for place, tied in enumerate(self.order) for index in tied}
        return tuple(place_of[index] for index in range(len(place_of)))


@dataclass(frozen=True, slots=True)
class Ratings:
    """Likert ratings: ``Ratings({"helpful": (4.0, None)}, {"helpful": (1.0, 5.0)})``, the second was not rated."""

    aspects: Mapping[str, tuple[float | None, ...]]
    """Aspect → rating of each completion; fractions where several people's mean was kept."""
    scales: Mapping[str, tuple[float, float]]
    """Aspect → lowest and highest rating."""
    compared_by: tuple[str, ...] = ()
    """Aspects that say which completion is better; empty where all do. The others describe (verbosity)."""

    def overall(self, index: int, *, beside: int | None = None) -> float | None:
        """Mean over the aspects that compare, each moved to 0 … 1 by its scale; None without any rating of these.

        To compare two completions, ``beside`` is the other: an aspect that one side alone was rated for says nothing of
        the two, and is left out.
        """
        shares = []
        for name, values in self.aspects.items():
            if self.compared_by and name not in self.compared_by:
                continue
            value, (low, high) = values[index], self.scales[name]
            if value is not None and (beside is None or values[beside] is not None):
                shares.append((value - low) / (high - low))
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What one annotator (or panel) said about completions of one prompt; every source of preferences becomes this.

    ``Feedback("…", ("a", "b", "c"), Ranking(((1,), (0, 2))), annotator="ada")``. lodestar.preference.pairs shows it as
    comparisons of two.
    """

    prompt: str
    """Rendered text, all that the model sees before a completion."""
    completions: tuple[str, ...]
    """K ≥ 2; ratings, which need no rival, may stand at K = 1."""
    verdict: tuple[Choice, ...] | Ranking | Ratings
    id: str = ""
    annotator: str = ""
    """One name, or several joined by commas where the label is their vote."""
    subset: str = ""
    """The part of the data that the card reports apart: a file, or a source's own name for it."""
    flags: tuple[str, ...] = ()
    """What else the annotators said, such as ``completion 1 unacceptable``."""
    gold: tuple[float, ...] | None = None
    """Hidden gold rewards of the completions where they are known (the synthetic world)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A feedback's view of two of its completions.

    ``Comparison("…", ("short reply", "long reply"), label=1.0)`` says that the first was preferred.
    """

    prompt: str
    completions: tuple[str, str]
    label: float
    """Probability that the first is better: 1, 0, or 0.5 for a tie."""
    id: str = ""
    annotator: str = ""
    gap: float | None = None
    """Difference of the hidden gold rewards where they are known (the synthetic world)."""
    strength: float = 0.0
    """See Choice.strength; places apart for a ranking, share of the scale for ratings."""
    subset: str = ""


@dataclass(frozen=True, slots=True)
class Ticket:
    """An order for n samples of one prompt, for one step of one run."""

    run: str
    incarnation: str
    step: int
    index: int
    """Position in the step's batch, 0 … tickets per step − 1."""
    prompt: Prompt
    n: int
    seed: int
    min_step: int
    """Oldest acceptable policy step."""
    max_tokens: int
    temperature: float
    attempt: int = 0
    """0 for the first issue of this (step, index); a re-issue after failure or staleness counts up."""

    @property
    def id(self) -> str:
        """``"12.7.0"``: step, index and attempt; unique within a run's lineage of checkpoints."""
        return f"{self.step}.{self.index}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One response with everything PPO needs to learn from it."""

    token_ids: tuple[int, ...]
    """Response tokens, shape [S], EOS included when there is one."""
    behaviour_logprobs: tuple[float, ...]
    """Shape [S], the sampler's."""
    reference_logprobs: tuple[float, ...]
    """Shape [S], the reference model's; empty where none was asked."""
    score: float | None
    """The reward's, before offset and clip; None where none was asked."""
    finish_reason: FinishReason
    text: str = ""
    score_standard_deviation: float = 0.0
    heads: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The n samples of one ticket, made by one version of the policy."""

    ticket: Ticket
    version: WeightVersion
    samples: tuple[Sample, ...]
    worker: str
    generate_seconds: float = 0.0
    score_seconds: float = 0.0

    def token_hash(self) -> str:
        """Hex sha256 of the samples' token ids: the ledger's proof of what was trained on."""
        text = ";".join(",".join(map(str, sample.token_ids)) for sample in self.samples)
        return hashlib.sha256(text.encode()).hexdigest()


Outcome = Literal["trained", "sampled", "failed", "superseded"]
"""trained: by PPO; sampled: kept by a stage that samples. Either way the ticket's samples count, once."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """How one issued ticket ended: one line of ledger.jsonl."""

    incarnation: str
    step: int
    id: str
    tokens: str
    """Rollout.token_hash(); empty when nothing was received."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One safetensors file of a weight version: ``TensorFile("model.safetensors", 2_811_904)``."""

    name: str
    bytes: int


MAX_PROBES = 8
"""Of one weight version: a policy server computes them together."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Fixed tokens and the learner's log-probs of them, which a policy server must reproduce through its serving path.

    ``Probe(Scored((1, 5, 8, 9), prompt_tokens=2), logprobs=(-3.1, -0.4), tolerance=1e-3)``
    """

    scored: Scored
    logprobs: tuple[float, ...]
    """Nats at temperature 1, one per token behind the prompt."""
    tolerance: float
    """Nats by which a served log-prob may differ."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Files that lead to a version: ``WeightFiles(version, (TensorFile("delta.safetensors", 41_312),), parent)``."""

    version: WeightVersion
    files: tuple[TensorFile, ...]
    parent: WeightVersion | None = None
    """Set when the files hold only what changed since this version; unset: every tensor."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """All that a policy server needs to fetch weights and to check what it fetched."""

    run: str
    version: WeightVersion
    chain: tuple[WeightFiles, ...]
    """What can be fetched, oldest first: full weights, and the changes from version to version that end at this one."""
    tensors: Mapping[str, str]
    """Hex sha256 of every tensor by state-dict name; version.digest is the sha256 over these in name order."""
    tokenizer_hash: str
    probes: tuple[Probe, ...] = ()


class RunState(StrEnum):
    """What a PPO run is doing."""

    STARTING = "starting"
    COLLECTING = "collecting"
    OPTIMISING = "optimising"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """The learner's process was told to leave; the run goes on when it is started again."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a PPO run is: what the learner tells whoever watches it."""

    run: str
    model: ModelInfo
    state: RunState
    step: int
    """PPO steps done."""
    total_steps: int
    settled: int
    """Tickets of the step in progress that are received."""
    batch: int
    """Tickets the step needs."""
    reason: str = ""
    """Why the run is paused, stopped or failed, or ended before its last step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last step's, by the names of metrics.jsonl."""
    eta_seconds: float = 0.0
