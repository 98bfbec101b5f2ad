"""Images and tensors of requests: read within limits, and decoded without running their code."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from PIL import Image

from leenet_fx.data.transforms import build_transform
from leenet_fx.errors import InputError, first_line
from leenet_fx.serving.forms import file_of_form
from leenet_fx.serving.served_network import ServedNetwork
from leenet_fx.serving.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "MPO")
"""Formats that are decoded; Pillow starts other programs for some of the others."""

SAFETENSORS = (
    "application/vnd.safetensors",
    "application/x-safetensors",
    "application/safetensors",
)
IMAGES = "image/"
ACCEPTED = (
    "an image (image/…, application/octet-stream, or one file in multipart/form-data), or a tensor "
    '(application/json with {"tensor": […]}, application/vnd.safetensors)'
)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Args:
        request: the request.
        limit: number of bytes.

    Raises:
        HTTPException: 413 if it is larger.
    """
    too_large = HTTPException(413, f"The request is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def content_of(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Return media type and content: of a body, or of the file in a form.

    Args:
        content_type: header of the request.
        body: of the request.

    Raises:
        HTTPException: 400 for a damaged form, or one without exactly one file.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return IMAGES, file_of_form(content_type, body)
    return kind, body


def decoder(
    network: ServedNetwork, settings: Settings
) -> Callable[[str, bytes], NDArray[np.float32]]:
    """Return the function from header and body of a request to the network's input.

    Args:
        network: the network.
        settings: limits of images.
    """
    transform = None if network.transform is None else build_transform(network.transform)

    def decode(content_type: str, body: bytes) -> NDArray[np.float32]:
        kind, content = content_of(content_type, body)
        if kind in SAFETENSORS:
            return _checked(_read_safetensors(content), network)
        if kind == "application/json":
            return _checked(_read_json(content), network)
        if kind.startswith(IMAGES) or kind == "application/octet-stream":
            if transform is None:
                raise HTTPException(
                    415, "How images become the input of this network is not known: send a tensor."
                )
            image = _read_image(content, settings.max_pixels)
            try:
                pixels: NDArray[np.float32] = transform(image).numpy()
            except InputError as error:
                raise HTTPException(422, f"The image cannot be used: {error}.") from error
            return _checked(pixels, network)
        found = kind or "no media type"
        raise HTTPException(415, f"Expected {ACCEPTED}, got {found}.")

    return decode


def _read_image(content: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit below is lower, or was set by whoever runs the server.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise HTTPException(
                    413, f"The image has {pixels} pixels; at most {max_pixels} are accepted."
                )
            image.load()
    except HTTPException:
        raise
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"The image has too many pixels: {first_line(error)}") from error
    except Exception as error:
        # Decoders raise errors of any kind for damaged files.
        raise HTTPException(422, "The content is no image that can be read.") from error
    return image


def _read_json(content: bytes) -> NDArray[np.float32]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The content is not JSON.") from error
    if not isinstance(values, dict) or "tensor" not in values:
        raise HTTPException(422, 'Expected JSON like {"tensor": [[[0.1, …], …], …]}.')
    try:
        found = np.asarray(values["tensor"])
    except ValueError as error:
        raise HTTPException(422, "The lists of 'tensor' have different lengths.") from error
    if found.dtype.kind not in "fiu":
        raise HTTPException(422, "'tensor' must hold numbers only.")
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def _read_safetensors(content: bytes) -> NDArray[np.float32]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = [tensor.float() for tensor in load(content).values() if not tensor.is_complex()]
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise HTTPException(400, "The content is not in the format of safetensors.") from error
    if len(found) != 1:
        raise HTTPException(422, f"Expected one tensor of real numbers, got {len(found)}.")
    values: NDArray[np.float32] = found[0].numpy()
    return values


def _checked(values: NDArray[np.float32], network: ServedNetwork) -> NDArray[np.float32]:
    """Return the image of a tensor (C, H, W) or (1, C, H, W)."""
    shape = network.image_shape
    if values.shape == (1, *shape):
        values = values[0]
    if values.shape != shape:
        raise HTTPException(
            422, f"Expected a tensor of shape {tuple(shape)}, got {tuple(values.shape)}."
        )
    if not np.isfinite(values).all():
        raise HTTPException(422, "The tensor must hold finite numbers.")
    return np.ascontiguousarray(values)
