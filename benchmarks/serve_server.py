"""The server of the serving benchmark, in a process of its own; prints its URL.

python benchmarks/serve_server.py FOLDER --kind exits --engine ray --replicas 2,1,1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from serve_networks import open_served

from leenet_fx.serving.app import create_app
from leenet_fx.serving.dependencies import require_ray
from leenet_fx.serving.ray_settings import RaySettings, parse_replicas
from leenet_fx.serving.server import address_of, listen, serve_app
from leenet_fx.serving.settings import Settings


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="The server of the serving benchmark.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["exits", "backbone"], default="exits")
    parser.add_argument("--engine", choices=["ray", "process"], default="ray")
    parser.add_argument("--replicas", default="1")
    parser.add_argument("--queue", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(port=0, rate=0, queue=options.queue)
    network = open_served(options.folder, options.kind)
    predictor: Any = None
    if options.engine == "ray":
        require_ray()
        import ray
        import serve_networks

        from leenet_fx.serving.ray_cluster import StageDeployments
        from leenet_fx.serving.ray_stages import RayStages

        # Replicas cannot import files of this folder.
        ray.cloudpickle.register_pickle_by_value(serve_networks)
        cluster = RaySettings(replicas=parse_replicas(options.replicas))
        predictor = RayStages(StageDeployments(network, cluster), settings)
    app = create_app(network, settings, predictor)
    listening = listen(settings)
    address = address_of(listening)
    serve_app(app, listening, lambda: print(address, flush=True))


if __name__ == "__main__":
    main()
