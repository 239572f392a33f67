"""A client's connection to one service: plaintext on loopback, or TLS that follows its files.

gRPC binds a channel to the certificate it was made with. When the files change, new calls go out on a new channel and
the old one is closed once its last call has ended, so that no call is lost.
"""
# ruff: noqa: ASYNC109 - a timeout here is the deadline of a call, which the server hears of

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lodestar.errors import ConfigError
from lodestar.rpc import channel
from lodestar.rpc.tls import Material, TlsFolder

Record = TypeVar("Record")


@dataclass(slots=True)
class _Generation:
    """A channel and the material it was made with."""

    channel: Any
    stub: Any
    material: Material | None
    calls: int = 0
    retired: bool = False

    @property
    def over(self) -> bool:
        return self.retired and not self.calls


class _Connection(ABC):
    """What both kinds share: which channel the next call takes."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        stub: Callable[[Any], Any],
        *,
        tls: Path | str | None = None,
        token: str | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """``metadata`` goes with every call.

        Raises:
            ConfigError: no address, TLS files that cannot be used, or a token without TLS.
        """
        if token is not None and tls is None:
            raise ConfigError("token", "would travel in plaintext; give tls, the folder with the server's ca.crt, too")
        self._addresses = addresses
        self._make_stub = stub
        self._metadata = metadata
        self._tls = None if tls is None else TlsFolder(tls)
        self._token = token
        self._present = self._open(None if self._tls is None else self._tls.material())

    def _method(self, stub: Any, name: str) -> Any:
        method = getattr(stub, name)
        return partial(method, metadata=self._metadata) if self._metadata else method

    def _open(self, material: Material | None) -> _Generation:
        credentials = None
        if self._tls is not None and material is not None:
            credentials = self._tls.channel_credentials(material, self._token)
        made = self._make_channel(credentials)
        return _Generation(made, self._make_stub(made), material)

    @abstractmethod
    def _make_channel(self, credentials: Any) -> Any:
        """A new channel of its kind."""

    def _renewed(self) -> _Generation | None:
        """Replaces the present channel when its files have changed; the replaced one."""
        material = None if self._tls is None else self._tls.material()
        if material is self._present.material:
            return None
        old, self._present = self._present, self._open(material)
        old.retired = True
        return old


class Connection(_Connection):
    """For ordinary code; safe to share between threads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        super().__init__(*arguments, **options)

    def call(self, method: str, request: Any, timeout: float) -> Any:
        """One unary call; ``timeout`` in seconds is its deadline."""
        with self._leased() as stub:
            return channel.call(self._method(stub, method), request, timeout)

    def stream(
        self, method: str, request: Any, timeout: float | None, parse: Callable[[Any], Record]
    ) -> Generator[Record, None, None]:
        """A server stream's messages, parsed; closing the generator cancels the call."""
        with self._leased() as stub:
            yield from channel.stream(self._method(stub, method), request, timeout, parse)

    def close(self) -> None:
        """Ends calls in flight and the connection."""
        self._present.channel.close()

    def _make_channel(self, credentials: Any) -> Any:
        return channel.sync_channel(self._addresses, credentials)

    @contextmanager
    def _leased(self) -> Iterator[Any]:
        with self._lock:
            replaced = self._renewed()
            leased = self._present
            leased.calls += 1
        if replaced is not None and replaced.over:
            replaced.channel.close()
        try:
            yield leased.stub
        finally:
            with self._lock:
                leased.calls -= 1
                over = leased.over
            if over:
                leased.channel.close()


class AsyncConnection(_Connection):
    """:class:`Connection` for asyncio."""

    async def call(self, method: str, request: Any, timeout: float) -> Any:
        """One unary call."""
        async with self._leased() as stub:
            return await channel.call_async(self._method(stub, method), request, timeout)

    async def stream(
        self, method: str, request: Any, timeout: float | None, parse: Callable[[Any], Record]
    ) -> AsyncGenerator[Record, None]:
        """A server stream's messages, parsed."""
        async with self._leased() as stub:
            messages = channel.stream_async(self._method(stub, method), request, timeout, parse)
            try:
                async for message in messages:
                    yield message
            finally:
                await messages.aclose()

    async def close(self) -> None:
        """Ends calls in flight and the connection."""
        await self._present.channel.close(None)

    def _make_channel(self, credentials: Any) -> Any:
        return channel.aio_channel(self._addresses, credentials)

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[Any]:
        replaced = self._renewed()
        leased = self._present
        leased.calls += 1
        try:
            if replaced is not None and replaced.over:
                await replaced.channel.close(None)
            yield leased.stub
        finally:
            leased.calls -= 1
            if leased.over:
                await leased.channel.close(None)
