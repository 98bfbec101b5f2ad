"""What requests and answers hold, as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """The answer to one image."""

    class_index: int = Field(description="Index of the most probable class.")
    class_name: str | None = Field(description="Its name; null if the network has no names.")
    probability: float = Field(description="Probability of that class.")
    exit_index: int = Field(description="Exit; the number of exits is the final classifier.")
    exit_name: str = Field(description="Block before the exit, or 'final classifier'.")
    cost: float = Field(description="FLOPs, relative to the backbone's.")
    point: str = Field(description="Operating point that was used.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    class_index: int
    class_name: str | None
    probability: float


class ExitDetail(BaseModel):
    """An exit that an image passed, or at which it exited."""

    exit_index: int
    exit_name: str
    cost: float = Field(description="FLOPs up to here, relative to the backbone's.")
    used: bool = Field(description="Whether the exit is used at this operating point.")
    exited: bool = Field(description="Whether the image exited here.")
    classes: list[ClassProbability] = Field(description="The most probable classes.")


class Explanation(BaseModel):
    """The answer to one image, and what each exit that it passed found."""

    prediction: Prediction
    exits: list[ExitDetail]


class PointInfo(BaseModel):
    """An operating point."""

    name: str
    costs: list[float] = Field(description="Relative FLOPs of exiting at each exit.")
    exit_shares: list[float] | None = Field(description="At calibration.")


class NetworkInfo(BaseModel):
    """The network, its operating points, and the exits taken since the start."""

    model: str
    image_shape: list[int]
    num_classes: int
    class_names: list[str] | None
    exits: list[str]
    points: list[PointInfo]
    point: str = Field(description="Operating point in use.")
    takes_images: bool = Field(description="Whether images are accepted, or only tensors.")
    exit_counts: list[int] = Field(description="Samples at each exit since the start.")


class PointChoice(BaseModel):
    """The operating point to use from now on."""

    point: str


class Health(BaseModel):
    """The state of the server."""

    status: str


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "tensor": {
                            "type": "array",
                            "items": {},
                            "description": "Numbers (C, H, W), standardised.",
                        }
                    },
                    "required": ["tensor"],
                }
            },
            "application/vnd.safetensors": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""The body of a request, for OpenAPI: it is read by hand, within limits."""

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Damaged content."},
    401: {"description": "A key is needed."},
    403: {"description": "The key is wrong."},
    408: {"description": "The content arrived too slowly."},
    413: {"description": "Too many bytes or pixels."},
    415: {"description": "A media type that is not accepted."},
    422: {"description": "No image, a tensor of another shape, or an unknown operating point."},
    429: {"description": "Too many requests of this client."},
    503: {"description": "Too many requests are being answered."},
}
