"""A board as protobuf, and back: what RunService tells is what the views draw."""

from __future__ import annotations

import time
from typing import Any, get_args

from lodestar.local.board import Board, Message, ServiceRow, ServiceState, StageRow, StageState
from lodestar.rpc import convert
from lodestar.v1 import run_pb2

LAST_MESSAGES = 50
"""So many are told."""
_STAGE = {state: run_pb2.StageState.Value(f"STAGE_STATE_{state.upper()}") for state in get_args(StageState)}
_SERVICE = {state: run_pb2.ServiceState.Value(f"SERVICE_STATE_{state.upper()}") for state in get_args(ServiceState)}
_STAGE_BACK = {number: state for state, number in _STAGE.items()}
_SERVICE_BACK = {number: state for state, number in _SERVICE.items()}


def to_proto(board: Board) -> run_pb2.RunProgress:
    """lodestar.v1.RunProgress of a board that other threads write to."""
    messages = list(board.messages)
    rate: Any = board.win_rate
    return run_pb2.RunProgress(
        run=board.run,
        seconds=time.monotonic() - board.started,
        stages=[
            run_pb2.StageStatus(
                name=row.name,
                state=_STAGE[row.state],
                seconds=row.elapsed,
                fraction=row.fraction,
                detail=row.detail,
                budget_seconds=row.budget_seconds,
                cut_short=row.cut_short,
            )
            for row in board.stages
        ],
        services=[
            run_pb2.ServiceStatus(
                name=row.name,
                state=_SERVICE[row.state],
                port=row.port,
                pid=row.pid,
                restarts=row.restarts,
                rpcs=row.rpcs,
                tokens=row.tokens,
                weight_step=row.weight_step,
            )
            for row in list(board.services)
        ],
        learner=None if board.status is None else convert.run_status_to_proto(board.status),
        win_rate=None if rate is None else run_pb2.WinRate(**rate),
        queue_waiting=board.queue_waiting,
        queue_taken=board.queue_taken,
        messages=[
            run_pb2.RunMessage(time=one.time, warning=one.level == "warning", text=one.text)
            for one in messages[-LAST_MESSAGES:]
        ],
        messages_before=max(0, len(messages) - LAST_MESSAGES),
    )


def take(board: Board, told: run_pb2.RunProgress) -> None:
    """Makes a board say what another one says; new messages are said anew, so that a plain view prints them."""
    now = time.monotonic()
    board.run, board.started = told.run, now - told.seconds
    board.stages = [_stage(row, now) for row in told.stages]
    board.services = [_service(row) for row in told.services]
    if told.HasField("learner"):
        running = next((row.name for row in board.stages if row.state == "running"), "")
        status = convert.run_status_from_proto(told.learner)
        fractions = {row.name: row.fraction for row in board.stages}
        board.update_status(running or board.stages[-1].name, status)
        for row in board.stages:
            row.fraction = fractions[row.name]
    rate = told.win_rate
    board.win_rate = (
        {"step": rate.step, "value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
        if told.HasField("win_rate")
        else None
    )
    board.queue_waiting = told.queue_waiting if told.HasField("queue_waiting") else None
    board.queue_taken = told.queue_taken if told.HasField("queue_taken") else None
    new = told.messages[max(0, board.told - told.messages_before) :]
    board.told = told.messages_before + len(told.messages)
    for one in new:
        message = Message(one.time, "warning" if one.warning else "info", one.text)
        board.messages.append(message)
        if board.listener:
            board.listener(message)


def from_proto(told: run_pb2.RunProgress) -> Board:
    """The board that is told of."""
    board = Board(told.run, [])
    take(board, told)
    return board


def _stage(told: run_pb2.StageStatus, now: float) -> StageRow:
    return StageRow(
        told.name,
        told.budget_seconds if told.HasField("budget_seconds") else None,
        _STAGE_BACK[told.state],
        told.seconds,
        now - told.seconds,
        told.fraction if told.HasField("fraction") else None,
        told.detail,
        told.cut_short,
    )


def _service(told: run_pb2.ServiceStatus) -> ServiceRow:
    return ServiceRow(
        told.name,
        told.port,
        told.pid,
        _SERVICE_BACK[told.state],
        told.restarts,
        told.rpcs,
        told.tokens,
        told.weight_step if told.HasField("weight_step") else None,
    )
