"""Wire: what the driver and engines say to each other while plays are under way, over ZeroMQ.

    router ──► Line ──► Exchange ══ one socket of the driver ══ Plug ──► engine thread
           ◄──      ◄──                                              ◄──

Ray places engines, restarts them, carries weights and tells of deaths. Requests and replies go beside it: a call to Ray
costs the driver more than all the rest of a turn, and has an engine's other threads take Python's lock from vLLM. With
hundreds of engines most calls would carry one request.

A connection is a *life*: the driver names it, the engine says hello under that name, and `watch`, a call to Ray that
never returns, fails when the engine dies. What is sent to a life that has ended goes nowhere, so an engine that Ray has
restarted never hears what its predecessor was asked. Nobody who does not know the name of a life is listened to, and
messages are data (msgpack of two structures), never code.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.serving.messages import GenRequest, GenResult

HELLO_SECONDS = 60.0
KEEPALIVE = {"TCP_KEEPALIVE": 1, "TCP_KEEPALIVE_IDLE": 60, "TCP_KEEPALIVE_INTVL": 15, "TCP_KEEPALIVE_CNT": 4}
"""Of ZeroMQ: a connection whose other end has vanished is found out after two minutes."""


class Restarted(RuntimeError):
    """This engine is not the one that was connected: Ray has restarted it since."""


class Unreachable(ConnectionError):
    """An engine runs, but cannot connect to the driver."""


class Order(msgspec.Struct, array_like=True):
    """What an engine is told at once."""

    requests: list[GenRequest]
    given_up: list[int] = []
    """Ids of requests that nobody waits for any more."""


encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_results = msgspec.msgpack.Decoder(list[GenResult]).decode


class Exchange:
    """The driver's end: one socket for all engines of a run. Belongs to the event loop that it is made in.

    A plain socket and not pyzmq's asyncio one, which makes several futures of a message. ZeroMQ rings once when
    something has come, and sending may swallow the ring: so all that has come is read each time, and after sending too.
    """

    def __init__(self, host: str):
        import zmq

        # The context is the process's: one that is collected as garbage waits for its sockets, which may be for ever.
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)  # nothing is ever dropped for want of room, and sending never waits
        self._socket.setsockopt(zmq.LINGER, 0)
        for name, value in KEEPALIVE.items():
            self._socket.setsockopt(getattr(zmq, name), value)
        self.address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
        self._bell = int(self._socket.getsockopt(zmq.FD))
        self._again, self._at_once = zmq.Again, int(zmq.NOBLOCK)
        self._lines: dict[bytes, Line] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._bell, self._read)
        self._sent = False
        """In this tick of the loop."""

    def open(self, line: Line) -> bytes:
        """A new life of the engine at the end of `line`, by whose name it is to say hello."""
        life = secrets.token_hex(16).encode()
        self._lines[life] = line
        return life

    def end(self, life: bytes) -> None:
        """Nobody listens to this life any more."""
        self._lines.pop(life, None)

    def send(self, life: bytes, order: Order) -> None:
        """Goes nowhere where that life has ended, or the run has."""
        if self._socket.closed:
            return
        self._socket.send_multipart((life, encode(order)))
        if not self._sent:
            self._sent = True
            self._loop.call_soon(self._read_after_sending)

    def _read_after_sending(self) -> None:
        self._sent = False
        self._read()

    def _read(self) -> None:
        try:
            while not self._socket.closed:
                life, *_, payload = self._socket.recv_multipart(self._at_once)
                line = self._lines.get(life)
                if line is not None:
                    line.take(decode_results(payload) if payload else None)
        except self._again:
            pass

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._bell)
            self._socket.close()


class Line:
    """The way to one engine. `engine`: its Ray actor, for whatever is no request."""

    def __init__(self, exchange: Exchange, engine: Any):
        self.engine = engine
        self._exchange = exchange
        self._life = b""
        self._greeted = self._news = asyncio.Event()
        self._found: list[GenResult] = []
        self._death: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None

    def take(self, results: list[GenResult] | None) -> None:
        """What has come from the engine. None: hello."""
        if results is None:
            self._greeted.set()
        else:
            self._found += results
            self._news.set()

    def close(self) -> None:
        """Whatever comes now is nobody's."""
        self._exchange.end(self._life)
        if self._watcher is not None:
            self._watcher.cancel()

    async def connect(self) -> dict[str, Any]:
        """Begins a life; the engine's report. Raises what Ray raises, and Unreachable."""
        self.close()
        self._greeted, self._news, self._found, self._death = asyncio.Event(), asyncio.Event(), [], None
        self._life = self._exchange.open(self)
        report: dict[str, Any] = await self.engine.connect.remote(self._exchange.address, self._life)
        try:
            await asyncio.wait_for(self._greeted.wait(), HELLO_SECONDS)
        except TimeoutError:
            raise Unreachable(
                f"the engine of policy {report['policy']!r} runs, but could not connect to the driver at "
                f"{self._exchange.address} within {HELLO_SECONDS:g} s: are ports between their nodes open?"
            ) from None
        self._watcher = asyncio.ensure_future(self._watch(self._life))
        return report

    async def _watch(self, life: bytes) -> None:
        from ray.exceptions import RayError

        try:
            await self.engine.watch.remote(life)
        except RayError as error:
            self._death = error
            self._news.set()

    def submit(self, batch: Sequence[GenRequest]) -> None:
        """Starts generations; their results come out of `collect`."""
        self._exchange.send(self._life, Order([*batch]))

    def abort(self, ids: Sequence[int]) -> None:
        """Ends these requests: an error is what comes out for them. Those that have ended are ignored."""
        self._exchange.send(self._life, Order([], [*ids]))

    async def collect(self) -> list[GenResult]:
        """Everything that has come since the last call; waits until that is something. Raises what Ray raised when the
        engine died, once nothing is left of what it had answered."""
        while not self._found and self._death is None:
            self._news.clear()
            await self._news.wait()
        if not self._found:
            assert self._death is not None
            raise self._death
        found, self._found = self._found, []
        return found


class Plug:
    """The engine's end. All but `ring` belongs to one thread."""

    def __init__(self) -> None:
        import zmq

        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._bell, zmq.POLLIN)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def ring(self) -> None:
        """Ends `wait`. For any thread."""
        try:
            self._rope.send(b"!")
        except BlockingIOError:
            pass  # it has been rung often enough

    def wait(self) -> None:
        """Until there is an order, or somebody rings."""
        self._poller.poll()
        try:
            while self._bell.recv(4096):
                pass
        except BlockingIOError:
            pass

    def connect(self, address: str, life: bytes) -> None:
        """To the driver, under that name; to nobody else any more."""
        import zmq

        self._disconnect()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IDENTITY, life)
        for name, value in KEEPALIVE.items():
            self._socket.setsockopt(getattr(zmq, name), value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)
        self._socket.send(b"")
        for one in (self._socket, self._monitor):
            self._poller.register(one, zmq.POLLIN)

    def orders(self) -> list[Order]:
        """All that have come. Raises ConnectionError where the driver has gone: what was under way between the two is
        lost, and nobody but Ray can tell the driver."""
        import zmq

        found: list[Order] = []
        if self._socket is None or self._monitor is None:
            return found
        try:
            while True:
                found.append(decode_order(self._socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        if self._monitor.poll(0):
            raise ConnectionError("the connection to the driver has ended")
        return found

    def send(self, results: Sequence[GenResult]) -> None:
        if self._socket is not None:
            self._socket.send(encode(results))

    def close(self) -> None:
        self._disconnect()
        self._bell.close()
        self._rope.close()

    def _disconnect(self) -> None:
        for one in (self._monitor, self._socket):
            if one is not None:
                self._poller.unregister(one)
        if self._socket is not None and self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
        self._socket = self._monitor = None
