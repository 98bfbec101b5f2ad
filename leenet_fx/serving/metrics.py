"""Counters of a server, in the text format of Prometheus, and drift of its exit shares."""

from __future__ import annotations

from typing import Any

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from leenet_fx.calibration.drift import ExitShareMonitor
from leenet_fx.serving.predictor import Answer
from leenet_fx.serving.served_network import ServedNetwork

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self, network: ServedNetwork) -> None:
        """Begin at zero.

        Args:
            network: whose exits are counted.
        """
        self.network = network
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "leenet_requests",
            "Requests, by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self.exits = Counter(
            "leenet_exits",
            "Samples, by operating point and exit.",
            ["point", "exit"],
            registry=registry,
        )
        self.seconds = Histogram(
            "leenet_answer_seconds",
            "Time from the request to its answer, by exit.",
            ["exit"],
            registry=registry,
            buckets=SECONDS,
        )
        self.batches = Histogram(
            "leenet_stage_batch_size",
            "Number of samples that a stage ran on at once.",
            ["stage"],
            registry=registry,
            buckets=SIZES,
        )
        self.pending = Gauge(
            "leenet_pending_requests", "Requests that are being answered.", registry=registry
        )
        self.drift = Gauge(
            "leenet_drift_detected",
            "Whether exit shares differ from those at calibration.",
            ["point"],
            registry=registry,
        )
        self.evidence = Gauge(
            "leenet_drift_log_evidence",
            "Logarithm of the evidence against the exit shares at calibration.",
            ["point"],
            registry=registry,
        )
        self.counts = [0] * len(network.exit_names)
        self.monitors = {
            name: ExitShareMonitor(name, point.exit_shares, point.samples)
            for name, point in network.points.items()
            if point.exit_shares is not None and point.samples
        }
        for name in self.monitors:
            self.drift.labels(name).set(0)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer.

        Args:
            answer: the answer.
            seconds: that it took.
        """
        self.counts[answer.exit_index] += 1
        self.exits.labels(answer.point, str(answer.exit_index)).inc()
        self.seconds.labels(str(answer.exit_index)).observe(seconds)
        monitor = self.monitors.get(answer.point)
        if monitor is not None:
            drifted = monitor.update(torch.tensor([answer.exit_index]))
            self.drift.labels(answer.point).set(drifted)
            self.evidence.labels(answer.point).set(monitor.log_evidence)

    def ran(self, stage: int, count: int) -> None:
        """Count the samples of a stage's batch."""
        self.batches.labels(str(stage)).observe(count)

    def text(self) -> bytes:
        """Return all counters in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts requests by path and status."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def noticing(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noticing)
        finally:
            # Paths that are no routes would be labels without bound.
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
