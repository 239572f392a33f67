"""Who is not let in costs nothing: the message is not even parsed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lodestar.errors import Unauthenticated
from lodestar.rpc.interceptors import CallInterceptor
from lodestar.v1 import policy_pb2, policy_pb2_grpc


class Counting(policy_pb2_grpc.PolicyServiceServicer):
    """Answers, and counts what reaches it."""

    async def Tokenize(self, request: policy_pb2.TokenizeRequest, context: Any) -> policy_pb2.TokenizeResponse:
        return policy_pb2.TokenizeResponse(token_ids=[len(request.text)])

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Any) -> Any:
        yield policy_pb2.GenerateResponse(text=request.text)


class Gate:
    """Lets in, or refuses as the real one does."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def admit(self, *_: object) -> None:
        if self.error is not None:
            raise self.error


async def call(method: str, data: bytes, gate: Gate) -> tuple[bytes, list[int]]:
    """Sends bytes; returns the answer, and the lengths of what the server parsed meanwhile."""
    parsed: list[int] = []

    def counting(kind: Any) -> Any:
        def parse(data: bytes) -> Any:
            parsed.append(len(data))
            return kind.FromString(data)

        return parse

    server = grpc.aio.server(interceptors=[CallInterceptor(lambda: True, gate)])  # type: ignore[arg-type]
    handlers = {
        "Tokenize": grpc.unary_unary_rpc_method_handler(
            Counting().Tokenize, counting(policy_pb2.TokenizeRequest), policy_pb2.TokenizeResponse.SerializeToString
        ),
        "Generate": grpc.unary_stream_rpc_method_handler(
            Counting().Generate, counting(policy_pb2.GenerateRequest), policy_pb2.GenerateResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lodestar.v1.PolicyService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            name = f"/lodestar.v1.PolicyService/{method}"
            if method == "Tokenize":
                return await channel.unary_unary(name)(data), parsed
            return b"".join([part async for part in channel.unary_stream(name)(data)]), parsed
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}".encode(), parsed
    finally:
        await server.stop(None)


@pytest.mark.parametrize("method", ["Tokenize", "Generate"])
async def test_a_refused_callers_message_is_not_parsed(method: str) -> None:
    data = policy_pb2.TokenizeRequest(text="x" * 1_000_000).SerializeToString()
    answer, parsed = await call(method, data, Gate(Unauthenticated("no token was sent")))
    assert answer.startswith(b"UNAUTHENTICATED no token was sent")
    assert parsed == []
    answer, parsed = await call(method, data, Gate(None))
    assert parsed == [len(data)]


@pytest.mark.parametrize("method", ["Tokenize", "Generate"])
async def test_bytes_that_are_no_message_are_refused_as_such(method: str) -> None:
    answer, _ = await call(method, b"\xff\xff\xff", Gate(None))
    assert answer.startswith(b"INVALID_ARGUMENT")
    assert b"the request's 3 bytes are no message of this call" in answer
