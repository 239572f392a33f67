"""Typed clients of Lodestar's services; records in, records out.

    from lodestar.client import PolicyClient
    with PolicyClient("localhost:50051") as policy:
        reply = policy.generate("what is the home and the color of the owl ? answer mia piratically", max_tokens=32)
        print(reply.completions[0].text)

Every call has a deadline, is retried where a server was unavailable, and raises a lodestar.errors.LodestarError with
the server's sentence. A fleet that speaks TLS wants ``tls``, a folder with its ca.crt, and either a certificate in the
same folder or a ``token``: ``PolicyClient("policy:50053", tls="certs/caller", token="…")``. ``Async…`` twins have the
same methods for asyncio. Several addresses of one service (``["10.0.0.1:50051", "10.0.0.2:50051"]``, or a ``dns:///``
name) share the calls.
"""

from lodestar.client.asynchronous import (
    AsyncLearnerClient,
    AsyncPolicyClient,
    AsyncPolicyControlClient,
    AsyncReferenceClient,
    AsyncRewardClient,
    AsyncRunClient,
    AsyncTrainingClient,
    AsyncWeightsClient,
)
from lodestar.client.blocking import (
    LearnerClient,
    PolicyClient,
    PolicyControlClient,
    ReferenceClient,
    RewardClient,
    RunClient,
    TrainingClient,
    WeightsClient,
)

__all__ = [
    "AsyncLearnerClient",
    "AsyncPolicyClient",
    "AsyncPolicyControlClient",
    "AsyncReferenceClient",
    "AsyncRewardClient",
    "AsyncRunClient",
    "AsyncTrainingClient",
    "AsyncWeightsClient",
    "LearnerClient",
    "PolicyClient",
    "PolicyControlClient",
    "ReferenceClient",
    "RewardClient",
    "RunClient",
    "TrainingClient",
    "WeightsClient",
]
