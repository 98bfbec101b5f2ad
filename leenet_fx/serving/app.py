"""The HTTP application: images and tensors in, classes and exits out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from numpy.typing import NDArray
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from leenet_fx import __version__
from leenet_fx.errors import UnknownNameError
from leenet_fx.serving.access import RETRY_AFTER, Admission, Guard
from leenet_fx.serving.metrics import CountRequests, Metrics
from leenet_fx.serving.predictor import Answer, OverloadedError, Predictor
from leenet_fx.serving.scheduler import StageScheduler
from leenet_fx.serving.schemas import (
    BODY,
    ERRORS,
    ClassProbability,
    ExitDetail,
    Explanation,
    Health,
    NetworkInfo,
    PointChoice,
    PointInfo,
    Prediction,
)
from leenet_fx.serving.served_network import ServedNetwork
from leenet_fx.serving.settings import LOOPBACK, Settings
from leenet_fx.serving.uploads import decoder, read_body

logger = logging.getLogger("leenet_fx")

TOP = 5
"""Number of classes of an explanation."""

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The page takes nothing from elsewhere, and is shown in no other page."""

PointQuery = Annotated[str | None, Query(description="Operating point of this request.")]


class Service:
    """Answers requests for one network.

    Attributes:
        point: name of the operating point of requests that name none.
    """

    def __init__(
        self, network: ServedNetwork, settings: Settings, predictor: Predictor, metrics: Metrics
    ) -> None:
        self.network = network
        self.settings = settings
        self.predictor = predictor
        self.metrics = metrics
        self.admission = Admission(settings.queue)
        self.point = network.default_point
        self._decode = decoder(network, settings)

    def known_point(self, name: str | None) -> str:
        """Return the name of an operating point; the one in use for None."""
        try:
            return self.network.point(self.point if name is None else name).name
        except UnknownNameError as error:
            raise HTTPException(422, str(error)) from error

    async def image_of(self, request: Request) -> NDArray[np.float32]:
        """Return the network's input of a request."""
        try:
            async with asyncio.timeout(self.settings.read_seconds):
                body = await read_body(request, self.settings.max_bytes)
        except TimeoutError as error:
            raise HTTPException(408, "The content arrived too slowly.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The content is incomplete.") from error
        content_type = request.headers.get("content-type", "")
        return await run_in_threadpool(self._decode, content_type, body)

    async def answer(self, image: NDArray[np.float32], point: str, start: float) -> Answer:
        """Answer a sample and count it.

        Args:
            image: the network's input.
            point: name of the operating point.
            start: when the request arrived.
        """
        try:
            answer = await self.predictor.answer(image, point)
        except OverloadedError as error:
            raise HTTPException(503, str(error), RETRY_AFTER) from error
        self.metrics.answered(answer, time.monotonic() - start)
        return answer

    def prediction(self, answer: Answer) -> Prediction:
        """Return an answer as JSON."""
        return Prediction(
            class_index=answer.label,
            class_name=self.class_name(answer.label),
            probability=answer.probability,
            exit_index=answer.exit_index,
            exit_name=self.network.exit_names[answer.exit_index],
            cost=self.network.points[answer.point].costs[answer.exit_index],
            point=answer.point,
        )

    def class_name(self, index: int) -> str | None:
        """Return the name of a class; None if it is not known."""
        names = self.network.class_names
        return None if names is None else names[index]

    def explanation(self, image: NDArray[np.float32], answer: Answer) -> Explanation:
        """Return what each exit that a sample passed found."""
        found = self.network.probabilities(image, answer.point, answer.exit_index)
        costs = self.network.points[answer.point].costs
        exits = []
        for index in range(answer.exit_index + 1):
            probabilities = found.get(index)
            order = [] if probabilities is None else np.argsort(-probabilities)[:TOP].tolist()
            exits.append(
                ExitDetail(
                    exit_index=index,
                    exit_name=self.network.exit_names[index],
                    cost=costs[index],
                    used=probabilities is not None,
                    exited=index == answer.exit_index,
                    classes=[
                        ClassProbability(
                            class_index=label,
                            class_name=self.class_name(label),
                            probability=float(found[index][label]),
                        )
                        for label in order
                    ],
                )
            )
        return Explanation(prediction=self.prediction(answer), exits=exits)

    def info(self) -> NetworkInfo:
        """Return the network and its operating points."""
        network = self.network
        return NetworkInfo(
            model=network.name,
            image_shape=list(network.image_shape),
            num_classes=network.num_classes,
            class_names=None if network.class_names is None else list(network.class_names),
            exits=list(network.exit_names),
            points=[
                PointInfo(
                    name=point.name,
                    costs=list(point.costs),
                    exit_shares=None if point.exit_shares is None else list(point.exit_shares),
                )
                for point in network.points.values()
            ],
            point=self.point,
            takes_images=network.transform is not None,
            exit_counts=list(self.metrics.counts),
        )


def create_app(
    network: ServedNetwork, settings: Settings | None = None, predictor: Predictor | None = None
) -> FastAPI:
    """Return the ASGI application that serves a network.

    Args:
        network: from `open_network`.
        settings: limits and access; None takes the defaults.
        predictor: what answers samples; None runs the stages in a thread of this process.
    """
    settings = settings or Settings()
    metrics = Metrics(network)
    if predictor is None:
        predictor = StageScheduler(
            network, batch_size=settings.batch_size, max_delay=settings.max_delay
        )
    predictor.on_batch = metrics.ran
    service = Service(network, settings, predictor, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        predictor.start()
        yield
        await run_in_threadpool(predictor.stop)

    app = FastAPI(
        title="leenet-fx",
        version=__version__,
        description=f"{network.name} with early exits.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(CountRequests, metrics=metrics)
    if settings.is_local:
        # A page of another site could reach this address under a name of its own.
        hosts = [*LOOPBACK, "[::1]", settings.host]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    guarded = [Depends(Guard(settings))]
    _add_predictions(app, service, guarded)
    _add_operations(app, service, guarded)
    return app


def _add_predictions(app: FastAPI, service: Service, guarded: list[Any]) -> None:
    @app.post("/predict", dependencies=guarded, responses=ERRORS, openapi_extra=BODY)
    async def predict(request: Request, point: PointQuery = None) -> Prediction:
        """Predict the class of one image; it exits at the first exit that is confident enough."""
        start = time.monotonic()
        with service.admission.admitted():
            name = service.known_point(point)
            image = await service.image_of(request)
            return service.prediction(await service.answer(image, name, start))

    @app.post("/explain", dependencies=guarded, responses=ERRORS, openapi_extra=BODY)
    async def explain(request: Request, point: PointQuery = None) -> Explanation:
        """Predict as /predict does, with the class probabilities at each exit that was passed."""
        start = time.monotonic()
        with service.admission.admitted():
            name = service.known_point(point)
            image = await service.image_of(request)
            answer = await service.answer(image, name, start)
            return await run_in_threadpool(service.explanation, image, answer)


def _add_operations(app: FastAPI, service: Service, guarded: list[Any]) -> None:
    page = files("leenet_fx.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/healthz")
    async def health() -> Health:
        """Return "ok" as long as the server answers."""
        return Health(status="ok")

    @app.get("/network", dependencies=guarded)
    async def network_info() -> NetworkInfo:
        """Return the network, its operating points, and how many samples took each exit."""
        return service.info()

    @app.get("/metrics", dependencies=guarded, response_class=Response)
    async def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        service.metrics.pending.set(service.admission.pending)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/admin/point", dependencies=guarded)
    async def use_point(choice: PointChoice) -> NetworkInfo:
        """Use another operating point for requests that name none."""
        service.point = service.known_point(choice.point)
        logger.info("The operating point is now '%s'.", service.point)
        return service.info()
