"""lodestar.v1.PolicyService and PolicyControlService: translate between messages and records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from lodestar.errors import InvalidArgument
from lodestar.rpc import convert
from lodestar.rpc.bounds import check_chat, check_ids, check_sampling, check_sequences, check_text
from lodestar.v1 import policy_control_pb2, policy_control_pb2_grpc, policy_pb2, policy_pb2_grpc
from lodestar_services.policy.best_of import Asked
from lodestar_services.policy.policy import MAX_WAIT_SECONDS, Policy

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """See proto/lodestar/v1/policy.proto."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self._policy.check_tokenizer(request.tokenizer_hash)
        check_sampling(request.sampling)
        wanted = convert.weight_version_from_proto(request.min_version) if request.HasField("min_version") else None
        chunks = self._policy.generate(
            await self._prompt(request),
            convert.sampling_from_proto(request.sampling),
            min_version=wanted,
            wait_seconds=request.wait_seconds,
            purpose=convert.purpose_from_proto(request.purpose),
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield convert.chunk_to_proto(chunk)

    async def LogProbs(
        self, request: policy_pb2.PolicyServiceLogProbsRequest, context: Context
    ) -> policy_pb2.PolicyServiceLogProbsResponse:
        self._policy.check_tokenizer(request.tokenizer_hash)
        check_sequences(request.sequences, "sequences", self._policy.sequence_tokens)
        answers = await self._policy.logprobs(
            [convert.scored_from_proto(scored) for scored in request.sequences],
            temperature=request.temperature if request.HasField("temperature") else 1.0,
            entropy=request.entropy,
            top_logprobs=request.top_logprobs,
        )
        return policy_pb2.PolicyServiceLogProbsResponse(
            model=convert.model_info_to_proto(self._policy.info),
            sequences=[convert.token_logprobs_to_proto(answer) for answer in answers],
        )

    async def Tokenize(self, request: policy_pb2.TokenizeRequest, context: Context) -> policy_pb2.TokenizeResponse:
        if request.WhichOneof("input") == "chat":
            check_chat(request.chat.messages, "chat", self._policy.context_tokens)
            ids = (await self._policy.chat_prompt(convert.chat_from_proto(request.chat), "chat")).ids
        else:
            check_text(request.text, "text", self._policy.context_tokens)
            if request.as_prompt:
                ids = (await self._policy.text_prompt(request.text)).ids
            else:
                ids = await self._policy.tokenize(request.text, add_special_tokens=request.add_special_tokens)
        return policy_pb2.TokenizeResponse(model=convert.model_info_to_proto(self._policy.info), token_ids=ids)

    async def Detokenize(
        self, request: policy_pb2.DetokenizeRequest, context: Context
    ) -> policy_pb2.DetokenizeResponse:
        self._policy.check_tokenizer(request.tokenizer_hash)
        check_ids(request.token_ids, "token_ids", self._policy.context_tokens)
        answer = convert.detokenized_to_proto(await self._policy.detokenize(tuple(request.token_ids)))
        answer.model.CopyFrom(convert.model_info_to_proto(self._policy.info))
        return answer

    async def GetModel(
        self, request: policy_pb2.PolicyServiceGetModelRequest, context: Context
    ) -> policy_pb2.PolicyServiceGetModelResponse:
        return convert.description_to_policy(replace(self._policy.description, model=self._policy.info))

    async def _prompt(self, request: policy_pb2.GenerateRequest) -> Asked:
        kind, context = request.WhichOneof("prompt"), self._policy.context_tokens
        if kind == "tokens":
            check_ids(request.tokens.ids, "prompt.tokens", context)
            return Asked(tuple(request.tokens.ids))
        if kind == "chat":
            check_chat(request.chat.messages, "prompt.chat", context)
            return await self._policy.chat_prompt(convert.chat_from_proto(request.chat), "prompt.chat")
        if kind == "text":
            check_text(request.text, "prompt.text", context)
            return await self._policy.text_prompt(request.text)
        raise InvalidArgument("prompt", "is missing; set text, chat or tokens")


class PolicyControlServicer(policy_control_pb2_grpc.PolicyControlServiceServicer):
    """See proto/lodestar/v1/policy_control.proto."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def LoadVersion(
        self, request: policy_control_pb2.LoadVersionRequest, context: Context
    ) -> policy_control_pb2.LoadVersionResponse:
        seconds = context.time_remaining()
        await self._policy.load_version(
            convert.weight_version_from_proto(request.version), MAX_WAIT_SECONDS if seconds is None else seconds * 0.9
        )
        return policy_control_pb2.LoadVersionResponse(model=convert.model_info_to_proto(self._policy.info))

    async def Pause(
        self, request: policy_control_pb2.PolicyControlServicePauseRequest, context: Context
    ) -> policy_control_pb2.PolicyControlServicePauseResponse:
        await self._policy.engine.pause()
        model = convert.model_info_to_proto(self._policy.info)
        return policy_control_pb2.PolicyControlServicePauseResponse(model=model)

    async def Resume(
        self, request: policy_control_pb2.PolicyControlServiceResumeRequest, context: Context
    ) -> policy_control_pb2.PolicyControlServiceResumeResponse:
        await self._policy.engine.resume()
        model = convert.model_info_to_proto(self._policy.info)
        return policy_control_pb2.PolicyControlServiceResumeResponse(model=model)

    async def GetStatus(
        self, request: policy_control_pb2.PolicyControlServiceGetStatusRequest, context: Context
    ) -> policy_control_pb2.PolicyControlServiceGetStatusResponse:
        status = await self._policy.status()
        return policy_control_pb2.PolicyControlServiceGetStatusResponse(
            model=convert.model_info_to_proto(self._policy.info),
            paused=status.paused,
            running_sequences=status.running,
            waiting_sequences=status.waiting,
            kv_blocks_used=status.blocks_used,
            kv_blocks_total=status.blocks_total,
            last_swap_pause_seconds=status.swap_seconds,
            refusal=self._policy.refusal,
        )
