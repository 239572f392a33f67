"""An endpoint of OpenAI's API over a real socket, whose answers a test scripts: to be slow, to fail, to be nonsense."""

from __future__ import annotations

import importlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

importlib.import_module("openai")  # takes seconds, which are no test's
Script = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class Endpoint:
    """``script(body) -> (status, reply)``; what was asked is in ``asked``."""

    def __init__(self, url: str, script: Script) -> None:
        self.url = url
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []


@contextmanager
def endpoint(script: Script) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            serving.asked.append(body)
            serving.keys.append(self.headers.get("authorization", ""))
            status, reply = serving.script(body)
            data = json.dumps(reply).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):  # the caller did not wait
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(
    text: str, tokens: list[tuple[str, dict[str, float]]] | None = None, *, usage: bool = True, finish: str = "stop"
) -> tuple[int, dict[str, Any]]:
    """A chat's answer, with log-probs by token where they are given."""
    content = [
        {"token": token, "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}
        for token, top in tokens or []
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": {"content": content} if tokens is not None else None,
    }
    reply: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if usage:
        reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return 200, reply


def worth(body: dict[str, Any]) -> tuple[float, float]:
    """Of replies that are numbers: what A and B are worth, as the question shows them."""
    shown = body["messages"][-1]["content"]
    a, b = re.findall(r"Reply \([AB]\):\n(-?[\d.]+)", shown)
    return float(a), float(b)


def biased(bias: float) -> Script:
    """A judge with P(A) = σ(worth of A − worth of B + bias)."""

    def script(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        a, b = worth(body)
        odds = a - b + bias
        chance = 1 / (1 + math.exp(-odds))
        top = {"A": math.log(chance * 0.9), "B": math.log((1 - chance) * 0.7), " B": math.log((1 - chance) * 0.2)}
        letter = "A" if odds > 0 else "B"
        return said(f"({letter})", [("(", {"(": 0.0}), (letter, top), (")", {")": 0.0})])

    return script
