"""The rollout queue on Redis streams: both sides of the port (lodestar.queue.port)."""

from lodestar.queue.redis.learner import RedisLearnerQueue
from lodestar.queue.redis.worker import RedisWorkerQueue

__all__ = ["RedisLearnerQueue", "RedisWorkerQueue"]
