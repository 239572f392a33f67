"""Tinker's routes below /api/v1."""

from __future__ import annotations

from starlette.routing import Route

from lodestar_services.gateway.endpoint import Door, Endpoint
from lodestar_services.gateway.tinker.api import Tinker


def tinker_routes(tinker: Tinker, door: Door) -> list[Route]:
    """``healthz`` and the rest."""
    posts = {
        "client/config": tinker.client_config,
        "client/dynamic_config": tinker.dynamic_config,
        "create_session": tinker.create_session,
        "session_heartbeat": tinker.heartbeat,
        "sessions/{session}/finish": tinker.finish,
        "telemetry": tinker.telemetry,
        "create_model": tinker.create_model,
        "get_info": tinker.get_info,
        "forward_backward": tinker.forward_backward,
        "optim_step": tinker.optim_step,
        "save_weights": tinker.save_weights,
        "save_weights_for_sampler": tinker.save_for_sampler,
        "load_weights": tinker.load_weights,
        "create_sampling_session": tinker.create_sampler,
        "asample": tinker.sample,
        "retrieve_future": tinker.retrieve,
        "cancel_future": tinker.cancel,
    }
    gets = {
        "healthz": tinker.health,
        "get_server_capabilities": tinker.capabilities,
        "samplers/{sampler}": tinker.sampler,
    }
    raw = {"forward_backward"}
    return [
        Route(f"/api/v1/{path}", Endpoint(f"tinker/{path}", door, answer, raw=path in raw), methods=[method])
        for method, table in (("POST", posts), ("GET", gets))
        for path, answer in table.items()
    ]
