"""Messages between the driver and its engines during generation, over ZeroMQ.

    Router ──► EngineChannel ──► ChannelHub ══ one driver socket ══ EngineEndpoint ──► engine thread
           ◄──               ◄──                                                   ◄──

Ray places and restarts engines, carries weights and reports deaths. Requests, replies and cancellations share one
driver socket instead: a Ray call costs the driver more than the rest of a turn, and Ray's threads in the engine
process compete with vLLM for Python's lock.

Each connection has an *epoch*: a random name that the driver chooses and the engine uses as its ZeroMQ identity.
The driver drops messages from unknown epochs, and ZeroMQ drops messages to closed ones, so a restarted engine never
receives the requests of its predecessor. Messages are msgpack-encoded structures, never code.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.serving.messages import GenRequest, GenResult

HANDSHAKE_SECONDS = 60.0
KEEPALIVE = {"TCP_KEEPALIVE": 1, "TCP_KEEPALIVE_IDLE": 60, "TCP_KEEPALIVE_INTVL": 15, "TCP_KEEPALIVE_CNT": 4}
"""ZeroMQ socket options: TCP detects a vanished peer after two minutes."""


class Restarted(RuntimeError):
    """Ray has restarted this engine since the connection epoch began."""


class EngineUnreachable(ConnectionError):
    """The engine runs but cannot connect to the driver."""


class EngineMessage(msgspec.Struct, array_like=True):
    """One message from the driver to an engine."""

    requests: list[GenRequest]
    cancelled: list[int] = []
    """Ids of earlier requests whose results the driver no longer needs."""


encode = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_results = msgspec.msgpack.Decoder(list[GenResult]).decode


class ChannelHub:
    """The driver's socket, shared by all channels of a run. Belongs to the event loop that creates it.

    It reads a plain socket through its wake-up descriptor, because pyzmq's asyncio socket creates several futures
    per message. The descriptor is edge-triggered and a send may consume an edge, so each callback drains the
    socket, and one more callback runs after a send.
    """

    def __init__(self, host: str):
        """Binds a free TCP port of `host`, an address that the engines' nodes can reach."""
        import zmq

        # The process-wide context is never garbage-collected; collecting a context may block on its sockets.
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        configure(self._socket)
        self.address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
        self._wakeup_fd = int(self._socket.getsockopt(zmq.FD))
        self._again, self._noblock = zmq.Again, int(zmq.NOBLOCK)
        self._channels: dict[bytes, EngineChannel] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._wakeup_fd, self._read)
        self._read_scheduled = False

    def begin_epoch(self, channel: EngineChannel) -> bytes:
        """Starts a connection epoch of `channel` and returns its name."""
        epoch = secrets.token_hex(16).encode()
        self._channels[epoch] = channel
        return epoch

    def end_epoch(self, epoch: bytes) -> None:
        """Drops all later messages from `epoch`."""
        self._channels.pop(epoch, None)

    def send(self, epoch: bytes, message: EngineMessage) -> None:
        """Queues `message`; ZeroMQ drops it when the epoch's connection is closed."""
        if self._socket.closed:
            return
        self._socket.send_multipart((epoch, encode(message)))
        if not self._read_scheduled:
            self._read_scheduled = True
            self._loop.call_soon(self._read_after_send)

    def _read_after_send(self) -> None:
        self._read_scheduled = False
        self._read()

    def _read(self) -> None:
        try:
            while not self._socket.closed:
                epoch, *_, payload = self._socket.recv_multipart(self._noblock)
                channel = self._channels.get(epoch)
                if channel is not None:
                    channel.deliver(decode_results(payload) if payload else None)
        except self._again:
            pass

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._wakeup_fd)
            self._socket.close()


class EngineChannel:
    """The driver's connection to one engine. `engine`: its Ray actor handle, for calls other than generation."""

    def __init__(self, hub: ChannelHub, engine: Any):
        self.engine = engine
        self._hub = hub
        self._epoch = b""
        self._handshake = self._changed = asyncio.Event()
        self._results: list[GenResult] = []
        self._death: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None

    def deliver(self, results: list[GenResult] | None) -> None:
        """Takes one message from the engine; None is its handshake."""
        if results is None:
            self._handshake.set()
        else:
            self._results += results
            self._changed.set()

    def close(self) -> None:
        """Ends the connection epoch; later results are dropped."""
        self._hub.end_epoch(self._epoch)
        if self._watcher is not None:
            self._watcher.cancel()

    async def connect(self) -> dict[str, Any]:
        """Begins a connection epoch and returns the engine's report (`Engine.connect`).

        Raises RayError when the actor fails, and EngineUnreachable when no handshake arrives in HANDSHAKE_SECONDS.
        """
        self.close()
        self._handshake, self._changed, self._results, self._death = asyncio.Event(), asyncio.Event(), [], None
        self._epoch = self._hub.begin_epoch(self)
        report: dict[str, Any] = await self.engine.connect.remote(self._hub.address, self._epoch)
        try:
            await asyncio.wait_for(self._handshake.wait(), HANDSHAKE_SECONDS)
        except TimeoutError:
            raise EngineUnreachable(
                f"the engine of policy {report['policy']!r} runs, but could not connect to the driver at "
                f"{self._hub.address} within {HANDSHAKE_SECONDS:g} s: are ports between their nodes open?"
            ) from None
        self._watcher = asyncio.ensure_future(self._watch(self._epoch))
        return report

    async def _watch(self, epoch: bytes) -> None:
        from ray.exceptions import RayError

        try:
            await self.engine.watch.remote(epoch)
        except RayError as error:
            self._death = error
            self._changed.set()

    def submit(self, batch: Sequence[GenRequest]) -> None:
        """Sends requests; `collect` returns their results."""
        self._hub.send(self._epoch, EngineMessage([*batch]))

    def abort(self, ids: Sequence[int]) -> None:
        """Aborts running requests. Each still has a result, an error; ids of finished requests are ignored."""
        self._hub.send(self._epoch, EngineMessage([], [*ids]))

    async def collect(self) -> list[GenResult]:
        """Waits for results and returns all that arrived since the last call. Once the engine has died and its last
        results are collected, raises the RayError that reported the death."""
        while not self._results and self._death is None:
            self._changed.clear()
            await self._changed.wait()
        if not self._results:
            assert self._death is not None
            raise self._death
        results, self._results = self._results, []
        return results


class EngineEndpoint:
    """The engine's side of the connection. One thread uses it; any thread may call `wake`."""

    def __init__(self) -> None:
        import zmq

        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_receiver, zmq.POLLIN)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def wake(self) -> None:
        """Makes `wait` return."""
        try:
            self._wake_sender.send(b"!")
        except BlockingIOError:
            pass  # a full buffer already holds enough wake-ups

    def wait(self) -> None:
        """Blocks until a message arrives or another thread calls `wake`."""
        self._poller.poll()
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            pass

    def connect(self, address: str, epoch: bytes) -> None:
        """Replaces the current connection by one to the driver at `address` and sends the handshake."""
        import zmq

        self._disconnect()
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        handshake(self._socket, address, epoch)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def receive(self) -> list[EngineMessage]:
        """All messages that have arrived, without waiting. Raises ConnectionError when the driver has disconnected:
        messages in flight may be lost, and only the engine's death tells the driver so."""
        import zmq

        messages: list[EngineMessage] = []
        if self._socket is None or self._monitor is None:
            return messages
        try:
            while True:
                messages.append(decode_message(self._socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        if self._monitor.poll(0):
            raise ConnectionError("the connection to the driver has ended")
        return messages

    def send(self, results: Sequence[GenResult]) -> None:
        if self._socket is not None:
            self._socket.send(encode(results))

    def close(self) -> None:
        self._disconnect()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _disconnect(self) -> None:
        if self._socket is not None and self._monitor is not None:
            self._poller.unregister(self._monitor)
            self._poller.unregister(self._socket)
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
        self._socket = self._monitor = None


def configure(zmq_socket: Any) -> None:
    """Sets the options of both ends: sends never block or drop messages, closing discards unsent ones."""
    import zmq

    zmq_socket.set_hwm(0)
    zmq_socket.setsockopt(zmq.LINGER, 0)
    for name, value in KEEPALIVE.items():
        zmq_socket.setsockopt(getattr(zmq, name), value)


def handshake(dealer: Any, address: str, epoch: bytes) -> None:
    """Connects an engine's DEALER socket to the driver as `epoch`; an empty message is the handshake."""
    import zmq

    configure(dealer)
    dealer.setsockopt(zmq.IDENTITY, epoch)
    dealer.connect(address)
    dealer.send(b"")
