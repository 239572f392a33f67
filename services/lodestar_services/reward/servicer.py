"""lodestar.v1.RewardService: translates between messages and records."""

from __future__ import annotations

from typing import Any

import grpc

from lodestar.errors import InvalidArgument
from lodestar.rpc import convert
from lodestar.rpc.bounds import check_score_items
from lodestar.v1 import reward_pb2, reward_pb2_grpc
from lodestar_services.reward.reward import MAX_CHARACTERS, Reward

Context = grpc.aio.ServicerContext[Any, Any]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """See proto/lodestar/v1/reward.proto."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        self._reward.check_tokenizer(request.tokenizer_hash)
        check_score_items(request.items, self._reward.context_tokens, MAX_CHARACTERS)
        items = [convert.score_item_from_proto(item, f"items[{i}]") for i, item in enumerate(request.items)]
        if not request.tokenizer_hash and any(not isinstance(item.prompt, str) for item in items):
            raise InvalidArgument("tokenizer_hash", "is required with token ids: GetModel tells this server's")
        scores = await self._reward.score(items, context.time_remaining())
        return reward_pb2.ScoreResponse(
            model=convert.model_info_to_proto(self._reward.description.model),
            scores=[convert.score_to_proto(score) for score in scores],
        )

    async def GetModel(
        self, request: reward_pb2.RewardServiceGetModelRequest, context: Context
    ) -> reward_pb2.RewardServiceGetModelResponse:
        return convert.description_to_reward(self._reward.description)
