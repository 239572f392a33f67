"""The ASGI application: routes, who is let in, and answers whole or as server-sent events.

A caller that leaves, or a passed deadline, cancels what was asked of the policy servers.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lodestar.records import GenerationChunk, ModelDescription
from lodestar_services.gateway.endpoint import Door, Endpoint, Outgoing
from lodestar_services.gateway.errors import ApiError
from lodestar_services.gateway.gateway import Gateway, Samples
from lodestar_services.gateway.replies import DONE, ChatReply, Reply, TextReply
from lodestar_services.gateway.requests import ChatRequest, CompletionRequest, names, parsed
from lodestar_services.gateway.tinker.routes import tinker_routes
from lodestar_services.gateway.tokens import ids_of


def build(gateway: Gateway, door: Door, training_door: Door | None = None) -> ASGIApp:
    """The application: OpenAI's API before policy servers, tinker's before a training server."""
    answers = Answers(gateway)
    routes = [Route("/healthz", _health, methods=["GET"])]
    if gateway.tinker is not None:
        routes += tinker_routes(gateway.tinker, training_door or door)
    openai = [
        Route("/v1/chat/completions", Endpoint("chat/completions", door, answers.chat), methods=["POST"]),
        Route("/v1/completions", Endpoint("completions", door, answers.complete), methods=["POST"]),
        Route("/v1/models", Endpoint("models", door, answers.models), methods=["GET"]),
        Route("/v1/models/{name:path}", Endpoint("models", door, answers.model), methods=["GET"]),
    ]
    return Starlette(
        routes=[*routes, *(openai if gateway.generates else [])], exception_handlers={HTTPException: _nothing_here}
    )


class Answers:
    """What each route does with a body; ApiError and LodestarError are the endpoint's to tell."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def chat(self, body: Any, out: Outgoing) -> None:
        """POST /v1/chat/completions."""
        request = parsed(ChatRequest, body)
        out.names = names(request)
        model = await self._gateway.check_model(request.model)
        reply = ChatReply(
            request.model,
            samples=request.samples,
            logprobs=bool(request.logprobs),
            wants_usage=request.wants_usage,
        )
        await self._answer(request, reply, self._gateway.chat(request, model), out)

    async def complete(self, body: Any, out: Outgoing) -> None:
        """POST /v1/completions."""
        request = parsed(CompletionRequest, body)
        out.names = names(request)
        self._gateway.check_prompts(request)
        model = await self._gateway.check_model(request.model)
        echoes = await self._gateway.echoes(request) if request.echo else []
        reply = TextReply(
            request.model,
            samples=request.samples,
            logprobs=request.logprobs,
            echoes=echoes,
            wants_usage=request.wants_usage,
        )
        alone = request.length == 0
        if request.echo:
            ids = {token for echo in echoes for token in (*echo.token_ids, *(i for c in echo.candidates for i in c))}
            pieces = await self._gateway.pieces(ids, model.model.tokenizer_hash)
            for event in reply.echo(pieces, model.model, alone=alone):
                if request.stream:
                    await out.event(event)
        samples = _none() if alone else self._gateway.complete(request)
        await self._answer(request, reply, samples, out, pieces=bool(request.echo))

    async def models(self, body: Any, out: Outgoing) -> None:
        """GET /v1/models."""
        model = await self._gateway.model()
        await out.whole({"object": "list", "data": [self._described(model)]})

    async def model(self, body: Any, out: Outgoing) -> None:
        """GET /v1/models/NAME."""
        await out.whole(self._described(await self._gateway.check_model(out.path["name"])))

    async def _answer(
        self,
        request: ChatRequest | CompletionRequest,
        reply: Reply,
        samples: Samples,
        out: Outgoing,
        *,
        pieces: bool = False,
    ) -> None:
        """Reads the samples to their end; ``pieces``: their tokens are looked up although nobody wants log-probs."""
        look_up = pieces or request.logprobs not in (None, False)
        try:
            async with aclosing(samples):
                async for index, chunk in samples:
                    known = await self._pieces(chunk) if look_up else {}
                    if request.stream:
                        for event in reply.events(index, chunk, known):
                            await out.event(event)
                    else:
                        reply.take(index, chunk, known)
        finally:
            reply.usage.export()
        if not request.stream:
            await out.whole(reply.whole())
            return
        if request.wants_usage:
            await out.event(reply.last_event())
        await out.event(DONE)
        await out.end()

    async def _pieces(self, chunk: GenerationChunk) -> Any:
        return await self._gateway.pieces(ids_of(chunk), chunk.model.tokenizer_hash)

    def _described(self, model: ModelDescription) -> dict[str, Any]:
        return {
            "id": self._gateway.name_of(model),
            "object": "model",
            "created": self._gateway.created,
            "owned_by": "lodestar",
            "max_model_len": model.context_tokens,
        }


async def _none() -> Samples:
    """Of a request for nothing but its prompts."""
    nothing: tuple[Any, ...] = ()
    for one in nothing:
        yield one


async def _health(request: HttpRequest) -> Response:
    """The process alone: while the policy servers are away, requests are told so."""
    return PlainTextResponse("ok\n")


async def _nothing_here(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    there = "chat/completions, completions and models below /v1 are, and with --training tinker's API below /api/v1"
    refusal = ApiError(error.status_code, f"{what} is not served here; {there}", code="unknown_url")
    return JSONResponse(refusal.body, error.status_code, headers=error.headers)
