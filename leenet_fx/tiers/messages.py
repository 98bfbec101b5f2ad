"""Messages between tiers: a JSON header and tensors as safetensors bytes.

A message is a prefix of 24 bytes (magic, version, lengths, CRC-32), the header and the body.
Lengths are bounded before anything is read, the checksum is compared before anything is parsed, and
nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from leenet_fx.errors import InputError

MAGIC = b"LNFX"
VERSION = 1
MAX_BYTES = 256 * 2**20
"""Size of the largest message."""

MAX_HEADER = 2**16
_PREFIX = struct.Struct("!4sIIQI")


class MessageError(InputError):
    """A message that is damaged, too large, or of another version."""


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        kind: what is sent, for instance "samples".
        fields: JSON values.
        tensors: by name.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def number(self, name: str, least: float = 0) -> float:
        """Return a field that is a finite number.

        Args:
            name: of the field.
            least: the smallest value accepted.

        Raises:
            MessageError: the field is missing, no number or too small.
        """
        value = self.fields.get(name)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not least <= value < float("inf"):  # type: ignore[operator]
            raise MessageError(
                f"A '{self.kind}' message needs a number '{name}' from {least:g}, got {value!r}."
            )
        return value  # type: ignore[return-value]


def encode(message: Message, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a message.

    Args:
        message: with contiguous tensors.
        max_bytes: size of the largest message.

    Raises:
        InputError: the message is larger.
    """
    header = json.dumps({"kind": message.kind, **message.fields}).encode()
    body = b""
    if message.tensors:
        body = safetensors.torch.save({k: v.cpu() for k, v in message.tensors.items()})
    _check_lengths(len(header), len(body), max_bytes, InputError)
    crc = zlib.crc32(body, zlib.crc32(header))
    return _PREFIX.pack(MAGIC, VERSION, len(header), len(body), crc) + header + body


def read(receive: Callable[[int], bytes], max_bytes: int = MAX_BYTES) -> Message:
    """Read a message.

    Args:
        receive: returns a number of bytes.
        max_bytes: size of the largest message.

    Raises:
        MessageError: these are not the bytes of a message, or it is larger.
    """
    magic, version, header_size, body_size, crc = _PREFIX.unpack(receive(_PREFIX.size))
    if magic != MAGIC:
        raise MessageError(
            f"Expected a message of leenet_fx that begins with {MAGIC!r}, got {magic!r}: is "
            "another program at this address?"
        )
    if version != VERSION:
        raise MessageError(
            f"Expected a message of version {VERSION}, got version {version}: run the same version "
            "of leenet_fx on all tiers."
        )
    _check_lengths(header_size, body_size, max_bytes, MessageError)
    header, body = receive(header_size), receive(body_size)
    if zlib.crc32(body, zlib.crc32(header)) != crc:
        raise MessageError("The message was damaged: its checksum differs.")
    try:
        fields = json.loads(header)
        tensors = safetensors.torch.load(body) if body else {}
    except (ValueError, RecursionError, KeyError, SafetensorError) as error:
        raise MessageError(f"Not a header in JSON with tensors: {error}.") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str):
        raise MessageError("The header of the message has no 'kind'.")
    return Message(fields.pop("kind"), fields, tensors)


def _check_lengths(header: int, body: int, max_bytes: int, error: type[InputError]) -> None:
    if header > MAX_HEADER:
        raise error(f"The header has {header} bytes; at most {MAX_HEADER} are read.")
    if body > max_bytes:
        raise error(
            f"The message has {body} bytes; at most {max_bytes} are sent at once: use smaller "
            "batches."
        )
