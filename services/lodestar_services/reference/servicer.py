"""lodestar.v1.ReferenceService: translates between messages and records."""

from __future__ import annotations

from typing import Any

import grpc

from lodestar.records import ModelDescription
from lodestar.rpc import convert
from lodestar.rpc.bounds import check_sequences
from lodestar.v1 import reference_pb2, reference_pb2_grpc
from lodestar_services.reference.reference import Reference

Context = grpc.aio.ServicerContext[Any, Any]


class ReferenceServicer(reference_pb2_grpc.ReferenceServiceServicer):
    """See proto/lodestar/v1/reference.proto."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    async def LogProbs(
        self, request: reference_pb2.ReferenceServiceLogProbsRequest, context: Context
    ) -> reference_pb2.ReferenceServiceLogProbsResponse:
        frozen = self._reference.frozen
        frozen.check_tokenizer(request.tokenizer_hash)
        check_sequences(request.sequences, "sequences", frozen.context_tokens + frozen.control.tokens)
        answers = await self._reference.logprobs(
            [convert.scored_from_proto(scored) for scored in request.sequences],
            temperature=request.temperature if request.HasField("temperature") else 1.0,
            entropy=request.entropy,
        )
        return reference_pb2.ReferenceServiceLogProbsResponse(
            model=convert.model_info_to_proto(frozen.info),
            sequences=[convert.token_logprobs_to_proto(answer) for answer in answers],
        )

    async def GetModel(
        self, request: reference_pb2.ReferenceServiceGetModelRequest, context: Context
    ) -> reference_pb2.ReferenceServiceGetModelResponse:
        frozen = self._reference.frozen
        return convert.description_to_reference(ModelDescription(frozen.info, frozen.context_tokens))
