"""lodestar.v1.TrainingService: translates between messages and records."""

from __future__ import annotations

from typing import Any

import grpc

from lodestar.errors import InvalidArgument
from lodestar.rpc import convert
from lodestar.rpc.bounds import check_sampling
from lodestar.v1 import training_pb2, training_pb2_grpc
from lodestar_services.training.store import SAMPLER, STATE
from lodestar_services.training.training import Training

Context = grpc.aio.ServicerContext[Any, Any]
_KINDS = {training_pb2.WEIGHTS_KIND_STATE: STATE, training_pb2.WEIGHTS_KIND_SAMPLER: SAMPLER}


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """See proto/lodestar/v1/training.proto."""

    def __init__(self, training: Training) -> None:
        self._training = training

    async def CreateModel(
        self, request: training_pb2.CreateModelRequest, context: Context
    ) -> training_pb2.CreateModelResponse:
        lora = convert.lora_from_proto(request.lora) if request.HasField("lora") else None
        model = await self._training.create(request.model_id, lora, request.path, optimizer=request.optimizer)
        return training_pb2.CreateModelResponse(model=convert.training_model_to_proto(model))

    async def GetModel(
        self, request: training_pb2.TrainingServiceGetModelRequest, context: Context
    ) -> training_pb2.TrainingServiceGetModelResponse:
        model = await self._training.describe(request.model_id)
        return training_pb2.TrainingServiceGetModelResponse(model=convert.training_model_to_proto(model))

    async def DeleteModel(
        self, request: training_pb2.DeleteModelRequest, context: Context
    ) -> training_pb2.DeleteModelResponse:
        await self._training.delete(request.model_id)
        return training_pb2.DeleteModelResponse()

    async def ForwardBackward(
        self, request: training_pb2.ForwardBackwardRequest, context: Context
    ) -> training_pb2.ForwardBackwardResponse:
        result = await self._training.forward_backward(
            request.model_id,
            [convert.datum_from_proto(datum) for datum in request.data],
            request.loss,
            dict(request.options),
            forward_only=request.forward_only,
            tokenizer=request.tokenizer_hash,
        )
        return convert.loss_result_to_proto(result)

    async def OptimStep(
        self, request: training_pb2.OptimStepRequest, context: Context
    ) -> training_pb2.OptimStepResponse:
        model, norm = await self._training.optim_step(request.model_id, convert.optim_params_from_proto(request))
        return training_pb2.OptimStepResponse(model=convert.model_info_to_proto(model), gradient_norm=norm)

    async def Sample(self, request: training_pb2.SampleRequest, context: Context) -> training_pb2.SampleResponse:
        check_sampling(request.sampling)
        sampled = await self._training.sample(
            request.model_id,
            request.path,
            tuple(request.prompt.ids),
            convert.sampling_from_proto(request.sampling),
            prompt_logprobs=request.prompt_logprobs,
            top_prompt_logprobs=request.top_prompt_logprobs,
            tokenizer=request.tokenizer_hash,
        )
        return convert.sampled_to_proto(sampled)

    async def SaveWeights(
        self, request: training_pb2.SaveWeightsRequest, context: Context
    ) -> training_pb2.SaveWeightsResponse:
        if request.kind not in _KINDS:
            raise InvalidArgument("kind", "is missing; STATE goes on with training, SAMPLER is for sampling")
        model, path = await self._training.save(
            request.model_id, _KINDS[request.kind], request.name, overwrite=request.overwrite
        )
        return training_pb2.SaveWeightsResponse(model=convert.model_info_to_proto(model), path=path)

    async def LoadWeights(
        self, request: training_pb2.LoadWeightsRequest, context: Context
    ) -> training_pb2.LoadWeightsResponse:
        model = await self._training.load_weights(request.model_id, request.path, optimizer=request.optimizer)
        return training_pb2.LoadWeightsResponse(model=convert.model_info_to_proto(model))
