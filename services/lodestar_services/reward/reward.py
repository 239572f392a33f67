"""The reward's scores: models batched over the calls that are waiting, Python sources beside them, added up."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from lodestar import metrics
from lodestar.config import RewardTask, SourceConfig
from lodestar.config.rewards import served_sources
from lodestar.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LodestarError
from lodestar.records import ModelDescription, ModelInfo, Score, ScoreItem, WeightVersion
from lodestar.rewards.combine import Judgement, combine
from lodestar.rewards.models import Encoded, ScoringModel
from lodestar.rewards.rules import Exchange
from lodestar.rpc.batching import ComputeThread, TokenBatcher
from lodestar.rpc.bounds import slices
from lodestar.rpc.checks import check_count, check_tokenizer_hash, check_tokens
from lodestar_services.reward.sources import ModelSource, PythonSource, Work

ANSWERED_IN = 0.9
"""Share of a caller's deadline after which a source is too slow: the caller still hears which one."""
MAX_CHARACTERS = 2**20
"""Of a prompt or completion given to sources that have no context of their own."""
TURN_CHARACTERS = 2**16
"""Read at a stretch; a call with more gives others their turn in between."""


class Reward:
    """``await load()``, then ``await score(…)``."""

    def __init__(self, task: RewardTask) -> None:
        """``path``: the run's own reward model, for the sources that name no other."""
        self._path = task.model or ""
        self._task = task
        self._sources: tuple[SourceConfig, ...] = served_sources(task.section.sources, synthetic=False)
        self._weights = {source.name: source.weight for source in self._sources if not source.watched}
        section = task.section
        self._compute = ComputeThread("reward", threads=1 if task.deterministic else section.threads)
        self._tokenizing = ComputeThread("tokenizer")  # beside a forward pass, and never in two threads at once
        self._python_thread = ComputeThread("reward-python", waits=True)  # for a judge elsewhere, say
        self._batcher = TokenBatcher[Work, dict[str, Judgement]](
            self._compute,
            self._answer,
            tokens_of=lambda work: work.tokens,
            batch_tokens=section.batch_tokens,
            wait_seconds=section.batch_wait_ms / 1000,
            max_queued_tokens=section.max_queued_tokens,
            training_share=section.training_share,
        )
        self._models: list[ModelSource] = []
        self._python: list[PythonSource] = []
        self.description: ModelDescription

    async def load(self) -> None:
        """Loads every source, models on their thread, and runs the models once."""
        self._python = [PythonSource.load(source) for source in self._sources if source.kind != "model"]
        for source in self._sources:
            if source.kind == "model":
                self._models.append(await self._compute.run(ModelSource.load, source, self._task))
        self.description = self._describe()
        metrics.MODEL_INFO.labels(self.description.model.name, self.description.model.tokenizer_hash, "").set(1)
        if self._models:
            warm = await self._tokenizing.run(self._encode, [ScoreItem("a", "b")], [Exchange("a", "b")])
            await self._compute.run(self._answer, warm)

    def check_tokenizer(self, theirs: str) -> None:
        """Raises TokenizerMismatch when the caller names another tokenizer than the one whose ids are read here."""
        ours = self.description.model.tokenizer_hash
        if theirs and not ours:
            raise FailedPrecondition(
                "tokenizer_hash: the sources of this server share no tokenizer; send text, without a hash"
            )
        check_tokenizer_hash(ours, theirs)

    async def score(self, items: Sequence[ScoreItem], seconds: float | None = None) -> list[Score]:
        """One score per item, in order; ``seconds`` are left until the caller's deadline.

        Raises:
            InvalidArgument: an empty call or completion, a sequence beyond a model's context, an id that is no token.
            ResourceExhausted: too much is queued.
            NonFinite: a model is broken.
            SourceFailed: a function raised or returned what is no reward.
            DeadlineExceeded: a Python source was too slow for this many items; the message names it.
        """
        check_count(items, "items")
        exchanges: list[Exchange] = []
        works: list[Work] = []
        for part in slices((len(item.prompt) + len(item.completion) for item in items), TURN_CHARACTERS):
            read, encoded = await self._tokenizing.run(self._read_and_encode, items[part], part.start)
            exchanges += read
            works += encoded
        self._check(items, works)
        metrics.TOKENS_IN.inc(sum(work.tokens for work in works if work.encoded))
        modelled = self._batcher.submit(works) if self._models else _nothing(len(items))
        judged, of_python = await asyncio.gather(modelled, self._ask_python(exchanges, seconds))
        for one, more in zip(judged, of_python, strict=True):
            one.update(more)
        self._measure(judged)
        return [combine(one, self._weights) for one in judged]

    async def _ask_python(self, exchanges: Sequence[Exchange], seconds: float | None) -> list[dict[str, Judgement]]:
        found: list[dict[str, Judgement]] = [{} for _ in exchanges]
        until = None if seconds is None else asyncio.get_running_loop().time() + ANSWERED_IN * seconds
        for source in self._python:
            try:
                async with asyncio.timeout_at(until):
                    judged = await self._python_thread.run(source.judge, exchanges)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"reward source {source.config.name} did not judge {len(exchanges)} "
                    f"completion{'s' * (len(exchanges) != 1)} within the call's deadline of {seconds:.1f} s"
                ) from None
            for one, judgement in zip(found, judged, strict=True):
                if judgement is not None:
                    one[source.config.name] = judgement
        return found

    # --- what arrives ------------------------------------------------------------------------------------------
    @property
    def context_tokens(self) -> int | None:
        """The smallest context among the models; None without one."""
        members = (member for source in self._models for member in source.members)
        return min((member.context_tokens for member in members), default=None)

    def _read_and_encode(self, items: Sequence[ScoreItem], first: int) -> tuple[list[Exchange], list[Work]]:
        exchanges = self._read(items, first)
        return exchanges, self._encode(items, exchanges)

    def _read(self, items: Sequence[ScoreItem], first: int) -> list[Exchange]:
        """The items as text; token ids are spelled out without the BOS that leads and the id that ends them."""
        read = []
        for i, item in enumerate(items, first):
            if isinstance(item.prompt, str) and isinstance(item.completion, str):
                read.append(Exchange(item.prompt, item.completion, item.cut_off, item.columns, item.messages))
                continue
            reader = self._reader
            if reader is None:
                raise InvalidArgument(
                    f"items[{i}]", "is token ids, and the sources of this server read text; send text"
                )
            prompt, completion = _ids(item.prompt), _ids(item.completion)
            for half, ids in (("prompt_tokens", prompt), ("completion_tokens", completion)):
                check_tokens(
                    ids, f"items[{i}].{half}", vocab_size=reader.vocab_size, context_tokens=reader.context_tokens
                )
            spelled = self._spelled(reader, prompt, completion) if self._python else Exchange("", "")
            read.append(replace(spelled, columns=item.columns))
        return read

    @property
    def _reader(self) -> ScoringModel | None:
        """A model whose token ids callers may send: there is one tokenizer, and no model that wants text pairs."""
        members = [member for source in self._models for member in source.members]
        alike = len({member.tokenizer_hash for member in members}) == 1
        return members[0] if alike and not any(member.pairs for member in members) else None

    def _spelled(self, reader: ScoringModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Exchange:
        tokenizer = reader.tokenizer
        ended = completion[-1] in reader.end_ids
        head = prompt[1:] if prompt[0] == tokenizer.bos_token_id else prompt
        tail = completion[:-1] if ended else completion
        texts = [tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in (head, tail)]
        return Exchange(str(texts[0]), str(texts[1]), cut_off=not ended)

    def _encode(self, items: Sequence[ScoreItem], exchanges: Sequence[Exchange]) -> list[Work]:
        """What every member of every model source reads; members with one tokenizer share the work."""
        encoded: dict[str, list[Encoded]] = {}
        texts = [i for i, item in enumerate(items) if isinstance(item.prompt, str)]
        columns = []
        for member in (member for source in self._models for member in source.members):
            key = member.tokenizer_hash + str(member.pairs)
            if key not in encoded:
                written = dict(zip(texts, member.encode([exchanges[i] for i in texts]), strict=True))
                encoded[key] = [
                    written[i] if i in written else Encoded(_ids(item.prompt) + _ids(item.completion), len(item.prompt))
                    for i, item in enumerate(items)
                ]
            columns.append(encoded[key])
        return [Work(tuple(row)) for row in zip(*columns, strict=True)] if columns else [Work(())] * len(items)

    def _check(self, items: Sequence[ScoreItem], works: Sequence[Work]) -> None:
        members = [member for source in self._models for member in source.members]
        for i, (item, work) in enumerate(zip(items, works, strict=True)):
            form = "text" if isinstance(item.prompt, str) else "tokens"
            for half, given in (("prompt", item.prompt), ("completion", item.completion)):
                if len(given) > MAX_CHARACTERS:
                    raise InvalidArgument(f"items[{i}].{half}_{form}", f"is longer than {MAX_CHARACTERS} characters")
            # A response may end before its first word; one that was cut off there is nothing at all.
            if not item.completion and (item.cut_off or form == "tokens"):
                raise InvalidArgument(f"items[{i}].completion_{form}", "is empty; give at least one token")
            for member, row in zip(members, work.encoded, strict=True):
                limits = {"vocab_size": member.vocab_size, "context_tokens": member.context_tokens}
                if not member.pairs:
                    check_tokens(row.token_ids[: row.prompt_tokens], f"items[{i}].prompt_{form}", **limits)
                    check_tokens(row.token_ids[row.prompt_tokens :], f"items[{i}].completion_{form}", **limits)
                check_tokens(row.token_ids, f"items[{i}]", **limits)

    # --- what is computed --------------------------------------------------------------------------------------
    def _answer(self, works: Sequence[Work]) -> list[dict[str, Judgement] | LodestarError]:
        """Every model source's judgement of each item; an item's first error stands for it."""
        found: list[dict[str, Judgement] | LodestarError] = [{} for _ in works]
        place = 0
        for source in self._models:
            scores = []
            for member in source.members:
                rows = [work.encoded[place] for work in works]
                scores.append(
                    member.scores(rows, alone=self._task.deterministic, batch_tokens=self._task.section.batch_tokens)
                )
                place += 1
            for i, judgement in enumerate(source.judge(scores)):
                so_far = found[i]
                if isinstance(so_far, dict):
                    if isinstance(judgement, Judgement):
                        so_far[source.config.name] = judgement
                    else:
                        found[i] = judgement
        return found

    def _measure(self, judged: Sequence[dict[str, Judgement]]) -> None:
        for name in (source.name for source in self._sources):
            values = [one[name].value for one in judged if name in one]
            for value in values:
                metrics.REWARD_SOURCE_SCORES.labels(name).observe(value)
            if values:
                metrics.REWARD_SOURCE_MEAN.labels(name).set(sum(values) / len(values))

    def _describe(self) -> ModelDescription:
        members = [member for source in self._models for member in source.members]
        names = [path for source in self._models for path in source.config.paths or (self._path,)]
        names += [f"{source.config.kind}:{source.config.name}" for source in self._python if not source.config.watched]
        parts = [member.digest for member in members]
        scoring = [source for source in self._sources if not source.watched]
        if len(parts) == 1 and len(scoring) == 1 and scoring[0].kind == "model":
            digest = parts[0]
        else:
            whole = [source.model_dump_json() for source in self._sources] + parts
            digest = hashlib.sha256("\n".join(whole).encode()).hexdigest()
        heads = [source.name for source in self._sources]
        heads += [f"{source.config.name}.{head}" for source in self._models for head in source.heads]
        reader = self._reader
        return ModelDescription(
            ModelInfo(
                "+".join(names), WeightVersion("", 0, digest), reader.tokenizer_hash if reader is not None else ""
            ),
            context_tokens=min((member.context_tokens for member in members), default=0),
            heads=tuple(heads),
            ensemble_size=max((s.ensemble_size for s in self._models if not s.config.watched), default=1),
        )


def _ids(half: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(half, str), "the messages hold two halves of one form"
    return half


async def _nothing(count: int) -> list[dict[str, Judgement]]:
    """No model judges anything."""
    return [{} for _ in range(count)]
