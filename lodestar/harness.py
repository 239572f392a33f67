"""A policy behind PolicyService as a model of lm-evaluation-harness (Gao et al. 2024), and what its tasks say of two
policies: the alignment tax (Ouyang et al. 2022, section 4.2) is what training by a reward cost elsewhere.

Needs the extra ``eval``. Texts become tokens by the model's own tokenizer, as everywhere here (lodestar.data.rows):
context and continuation apart, the spaces that end a context belonging to the continuation as in the harness.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from lodestar.asking import CALL_SECONDS, ROWS_PER_CALL, SAMPLES_IN_FLIGHT, patiently, prompt_seed, together
from lodestar.client import AsyncPolicyClient
from lodestar.data.chat import ChatFormat
from lodestar.data.rows import encode_completions, encode_prompts
from lodestar.errors import ConfigError
from lodestar.evaluation import bounded_mean
from lodestar.recipe.written import nearest
from lodestar.records import ChatMessage, SamplingParams, Scored, TokenLogProbs

GENERATED = 256
"""Tokens of a reply where a task says nothing, as in the harness."""
HONOURED = {"until", "max_gen_toks", "temperature", "do_sample", "top_p", "top_k"}
"""What a task may ask of a generation."""


class ServedPolicy(LM):  # type: ignore[misc]  # the harness has no types
    """``ServedPolicy(["localhost:50051"], tokenizer)``: a model for ``lm_eval.simple_evaluate``."""

    def __init__(
        self,
        servers: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        tls: Path | None = None,
        in_flight: int = SAMPLES_IN_FLIGHT,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        """``in_flight``: generations asked for at once. ``progress`` hears how many more requests are answered."""
        super().__init__()
        self._servers, self._tokenizer = servers, tokenizer
        self._seed, self._tls, self._in_flight, self._progress = seed, tls, in_flight, progress
        self._format = ChatFormat(tokenizer)
        self.cut = 0
        """Contexts that lost tokens at their beginning, since they were too long for the model."""

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of chats."""
        return str(self._tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's text."""
        return str(self._tokenizer.chat_template or "")

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model was trained to read them.

        Raises:
            ValueError: the template refuses them; in its own words.
        """
        messages = [ChatMessage(message["role"], message["content"]) for message in chat_history]
        if not add_generation_prompt and messages and messages[-1].role == "assistant":
            return "".join(self._format.reply(messages[:-1], messages[-1].content))
        return self._format.prompt(messages)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log π(continuation | context) in nats, and whether it is what greedy decoding would say."""
        return asyncio.run(self._likelihoods([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log π of whole texts in nats: every token is predicted once, from a window that moves a context at a time."""
        return asyncio.run(self._rolling([request.args[0] for request in requests]))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies up to one of the task's stop strings, greedy unless it says otherwise.

        Raises:
            ConfigError: the task asks for what the policy service does not honour, or its context fills the model's.
        """
        return asyncio.run(self._generations([request.args for request in requests]))

    async def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        async with self._client() as policy:
            context = await _context(policy)
            rows = [self._row(*pair, context) for pair in pairs]
            said = await self._logprobs(policy, rows)
        return [(math.fsum(one.logprobs), _is_greedy(row, one)) for row, one in zip(rows, said, strict=True)]

    async def _rolling(self, texts: Sequence[str]) -> list[float]:
        words = self._tokenizer
        head = words.bos_token_id if words.bos_token_id is not None else words.eos_token_id
        async with self._client() as policy:
            longest = await _context(policy) - 1
            owners: list[int] = []
            rows: list[Scored] = []
            for owner, ids in enumerate(encode_completions(words, texts, ended=False)):
                windows = get_rolling_token_windows(list(ids), prefix_token=head, max_seq_len=longest, context_len=1)
                for before, predicted in map(make_disjoint_window, windows):
                    owners.append(owner)
                    rows.append(Scored((*before, *predicted), len(before)))
            said = await self._logprobs(policy, rows)
        totals = [0.0] * len(texts)
        for owner, one in zip(owners, said, strict=True):
            totals[owner] += math.fsum(one.logprobs)
        return totals

    async def _generations(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        admitted = asyncio.Semaphore(self._in_flight)
        async with self._client() as policy:
            context = await _context(policy)
            lengths = map(len, encode_prompts(self._tokenizer, [prompt for prompt, _ in asked]))
            told = [
                _sampling(options, context - length, prompt_seed(self._seed, "tasks", str(number)))
                for number, ((_, options), length) in enumerate(zip(asked, lengths, strict=True))
            ]

            async def generated(prompt: str, sampling: SamplingParams) -> str:
                async with admitted:
                    made = await patiently(partial(policy.generate, prompt, sampling))
                self._progress(1)
                return made.completions[0].text

            return await together(generated(prompt, how) for (prompt, _), how in zip(asked, told, strict=True))

    def _client(self) -> AsyncPolicyClient:
        return AsyncPolicyClient(self._servers, timeout=CALL_SECONDS, tls=self._tls)

    async def _logprobs(self, policy: AsyncPolicyClient, rows: Sequence[Scored]) -> list[TokenLogProbs]:
        found: list[TokenLogProbs] = []
        for first in range(0, len(rows), ROWS_PER_CALL):
            some = rows[first : first + ROWS_PER_CALL]
            found += (await patiently(partial(policy.logprobs, some, top_logprobs=1))).sequences
            self._progress(len(some))
        return found

    def _row(self, context: str, continuation: str, longest: int) -> Scored:
        """Both in tokens; a context that is too long loses its beginning, as in the harness.

        Raises:
            ConfigError: the continuation alone is too long.
        """
        kept = context.rstrip()
        (head,) = encode_prompts(self._tokenizer, [kept])
        (tail,) = encode_completions(self._tokenizer, [context[len(kept) :] + continuation], ended=False)
        if not head:
            words = self._tokenizer
            head = (words.bos_token_id if words.bos_token_id is not None else words.eos_token_id,)
        room = longest - len(tail)
        if room < 1:
            raise ConfigError("tasks", f"an answer has {len(tail)} tokens, and the model's context is {longest}")
        self.cut += len(head) > room
        return Scored((*head[-room:], *tail), min(len(head), room))


async def _context(policy: AsyncPolicyClient) -> int:
    return (await patiently(policy.describe)).context_tokens


def _is_greedy(row: Scored, said: TokenLogProbs) -> bool:
    tail = row.token_ids[row.prompt_tokens :]
    return all(best[0].token_id == token for best, token in zip(said.top_logprobs, tail, strict=True))


def _sampling(options: Mapping[str, Any], room: int, seed: int) -> SamplingParams:
    if unknown := sorted(set(options) - HONOURED):
        raise ConfigError(
            "tasks", f"a task asks for {unknown[0]} in generation; {', '.join(sorted(HONOURED))} are there"
        )
    if room < 1:
        raise ConfigError("tasks", f"a task's prompt is {1 - room} tokens too long for the model; ask for fewer shots")
    until = options.get("until") or ()
    sampled = options.get("do_sample", float(options.get("temperature") or 0) > 0)
    return SamplingParams(
        max_tokens=min(int(options.get("max_gen_toks", GENERATED)), room),
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(options.get("top_p") or 1.0) if sampled else 1.0,
        top_k=int(options.get("top_k") or 0) if sampled else 0,
        stop=(until,) if isinstance(until, str) else tuple(until),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one task."""

    value: float
    """As the harness aggregates it."""
    values: tuple[float, ...] | None
    """By question, where the metric is their mean."""


def answers(
    model: ServedPolicy,
    names: Sequence[str],
    include: Path | None,
    *,
    shots: int | None,
    limit: int | None,
    chat: bool,
    seed: int,
) -> dict[str, dict[str, Measured]]:
    """Task → metric → what the harness found; a metric behind another filter than the first is ``metric (filter)``.

    Args:
        names: of tasks, groups or tags. include: a folder of task files of one's own beside the harness's.
        limit: questions of each task at most. chat: messages by the model's chat template.

    Raises:
        ConfigError: there is no such task, or one has no question.
    """
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        near = nearest(unknown[0], manager.all_tasks)
        raise ConfigError("tasks.names", f"lm-evaluation-harness has no task {unknown[0]!r}{near}")
    found = simple_evaluate(
        model, tasks=[*names], task_manager=manager, num_fewshot=shots, limit=limit, apply_chat_template=chat,
        bootstrap_iters=0, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    assert found is not None  # only ranks above 0 get nothing
    return {name: _measured(name, rows, found["results"][name]) for name, rows in sorted(found["samples"].items())}


def _measured(name: str, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Measured]:
    if not rows:
        raise ConfigError("tasks.names", f"task {name} has no questions")
    found: dict[str, Measured] = {}
    for key, value in results.items():
        metric, _, behind = key.partition(",")
        if not behind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        by_question = [row[metric] for row in sorted(rows, key=lambda row: row["doc_id"]) if row["filter"] == behind]
        numbers = tuple(float(one) for one in by_question if isinstance(one, int | float))
        is_mean = len(numbers) == len(by_question) and math.isclose(fmean(numbers), value, abs_tol=1e-9)
        shown = metric if behind == "none" else f"{metric} ({behind})"
        found[shown] = Measured(float(value), numbers if is_mean else None)
    return found


def tax(before: Mapping[str, Measured] | None, after: Mapping[str, Measured]) -> dict[str, Any]:
    """Metric → ``after`` and, with a model before, ``before`` and ``change``: values, and for metrics that are means
    their 95% intervals and n. The change is over pairs, question by question."""
    found: dict[str, Any] = {}
    for metric, one in after.items():
        found[metric] = {"after": _described(one)}
        if before is not None:
            other = before[metric]
            found[metric] |= {"before": _described(other), "change": {"value": one.value - other.value}}
            if one.values is not None and other.values is not None:
                pairs = zip(one.values, other.values, strict=True)
                found[metric]["change"] = _mean([a - b for a, b in pairs], low=-1.0)
    return found


def _described(one: Measured) -> dict[str, float]:
    return {"value": one.value} if one.values is None else _mean(one.values)


def _mean(values: Sequence[float], *, low: float = 0.0) -> dict[str, float]:
    """With its interval: of bounded values one that is honest for few of them, of others the normal one."""
    if all(low <= value <= 1 for value in values):
        return asdict(bounded_mean(values, low=low))
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"value": fmean(values), "low": fmean(values) - half, "high": fmean(values) + half, "n": len(values)}
