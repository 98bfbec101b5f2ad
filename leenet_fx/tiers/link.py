"""Links between tiers: sockets that carry messages, at a given bandwidth if asked."""

from __future__ import annotations

import errno
import math
import socket
import time

from leenet_fx.errors import EarlyExitError, InputError
from leenet_fx.tiers.messages import MAX_BYTES, Message, encode, read

BITS = 1e6 / 8
"""Bytes of a megabit."""

_CHUNK_SECONDS = 0.005
_MAX_CHUNK = 2**16
_CONNECT_SECONDS = 5.0


class LinkError(EarlyExitError, ConnectionError):
    """A tier that cannot be reached, has gone, or does not answer in time."""


def check_positive(value: float, what: str) -> float:
    """Return a number if it is finite and above 0.

    Args:
        value: to check.
        what: its name, for the message.

    Raises:
        InputError: it is not.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise InputError(f"The {what} must be a finite number above 0, got {value!r}.")
    return float(value)


def parse_address(text: str, *, free: bool = False) -> tuple[str, int]:
    """Return host and port of HOST:PORT; without a host, that of this machine.

    Args:
        text: such as "127.0.0.1:7000", "[::1]:7000" or "7000".
        free: whether port 0, which stands for a free one, is accepted.

    Raises:
        InputError: another form, or a port out of range.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    least = 0 if free else 1
    if not port.isascii() or not port.isdigit() or not least <= int(port) < 2**16:
        raise InputError(
            f"Expected an address such as 127.0.0.1:7000, with a port from {least} to 65535, got "
            f"'{text}'."
        )
    return host, int(port)


def listen(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT; port 0 takes a free one.

    Raises:
        InputError: the port is in use, or the address is not one of this machine.
    """
    return bind(*parse_address(address, free=True))


def bind(host: str, port: int, *, backlog: int = 16) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: name or address of this machine.
        port: 0 takes a free one.
        backlog: number of connections that may wait to be accepted.

    Raises:
        InputError: the port is in use, or the address is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"'{host}' is no address of this machine: {error}.") from error
    try:
        return socket.create_server(found[0][4], family=found[0][0], backlog=backlog)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"Port {port} of {host} is in use: choose another port, or 0 for a free one."
            ) from error
        raise InputError(f"Cannot listen on port {port} of '{host}': {error.strerror}.") from error


def address_of(listening: socket.socket) -> str:
    """Return HOST:PORT of a socket."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Link:
    """A connection that carries messages.

    A link of limited bandwidth sends its bytes in small pieces, each at the time when the link
    would have carried it, so that the receiver sees a message when a real link of that bandwidth
    would have delivered it.

    Attributes:
        bandwidth: in Mbit/s; None for no limit.
        sent: number of bytes sent.
        received: number of bytes received.
    """

    def __init__(
        self,
        connected: socket.socket,
        *,
        bandwidth: float | None = None,
        timeout: float | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Take over a socket.

        Args:
            connected: closed by `close`.
            bandwidth: in Mbit/s; None for no limit.
            timeout: seconds in which the other side must send or take further bytes of a message.
            max_bytes: size of the largest message.

        Raises:
            InputError: a bandwidth or timeout that is not above 0.
        """
        self.bandwidth = bandwidth
        if bandwidth is not None:
            check_positive(bandwidth, "bandwidth of a link (Mbit/s)")
        if timeout is not None:
            check_positive(timeout, "timeout of a link (seconds)")
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.sent = 0
        self.received = 0
        self._socket = connected
        self._free_at = 0.0
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, message: Message) -> int:
        """Send a message, and return its number of bytes.

        Raises:
            InputError: it is too large.
            LinkError: the other side has gone, or the bandwidth is too low.
        """
        content = memoryview(encode(message, self.max_bytes))
        try:
            self._socket.settimeout(self.timeout)
            if self.bandwidth is None:
                self._socket.sendall(content)
            else:
                self._send_paced(content, self.bandwidth * BITS)
        except OSError as error:
            raise LinkError(f"The other tier takes no bytes: {error}.") from error
        self.sent += len(content)
        return len(content)

    def receive(self, wait: float | None = None) -> Message:
        """Return the next message.

        Args:
            wait: seconds until its first byte must have arrived; None for no limit.

        Raises:
            MessageError: it is damaged or too large.
            LinkError: the other side has gone, or nothing arrives in time.
        """
        waits = True

        def exactly(count: int) -> bytes:
            nonlocal waits
            # Grows with what arrives, whatever length was announced.
            content = bytearray()
            while len(content) < count:
                self._socket.settimeout(wait if waits else self.timeout)
                part = self._socket.recv(min(count - len(content), 2**20))
                if not part:
                    raise LinkError("The other tier has closed the connection.")
                waits = False
                content += part
            self.received += count
            return bytes(content)

        try:
            return read(exactly, self.max_bytes)
        except TimeoutError as error:
            raise LinkError("The other tier does not answer in time.") from error
        except LinkError:
            raise
        except OSError as error:
            raise LinkError(f"The connection to the other tier broke: {error}.") from error

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send_paced(self, content: memoryview, rate: float) -> None:
        seconds = len(content) / rate
        if self.timeout is not None and seconds > self.timeout:
            raise LinkError(
                f"At {self.bandwidth:g} Mbit/s, {len(content)} bytes take {seconds:.3g} s, longer "
                f"than the timeout of {self.timeout:g} s."
            )
        piece = min(_MAX_CHUNK, max(1, int(rate * _CHUNK_SECONDS)))
        start = max(time.perf_counter(), self._free_at)
        for position in range(0, len(content), piece):
            part = content[position : position + piece]
            self._free_at = start + (position + len(part)) / rate
            time.sleep(max(0.0, self._free_at - time.perf_counter()))
            self._socket.sendall(part)


def connect(address: str, *, timeout: float, bandwidth: float | None = None) -> Link:
    """Connect to a tier that listens.

    Args:
        address: HOST:PORT.
        timeout: as for `Link`.
        bandwidth: in Mbit/s; None for no limit.

    Raises:
        InputError: no such form of address, or a value that is not above 0.
        LinkError: nothing listens there.
    """
    host, port = parse_address(address)
    check_positive(timeout, "timeout of a link (seconds)")
    try:
        connected = socket.create_connection((host, port), min(timeout, _CONNECT_SECONDS))
    except (OSError, UnicodeError) as error:
        raise LinkError(
            f"Nothing answers at '{address}' ({error}): start the last tier first."
        ) from error
    try:
        return Link(connected, bandwidth=bandwidth, timeout=timeout)
    except InputError:
        connected.close()
        raise
