"""leenet-fx serve: a network behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.interrupts import on_interrupt

if TYPE_CHECKING:
    from leenet_fx.serving.predictor import Predictor
    from leenet_fx.serving.ray_settings import RaySettings
    from leenet_fx.serving.served_network import ServedNetwork
    from leenet_fx.serving.settings import Settings


@o.expand_options
def serve(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder that 'leenet-fx fit' or leenet_fx.save wrote, or file or folder that "
            "'leenet-fx export' wrote."
        ),
    ],
    *,
    model: o.SavedModelOption = None,
    weights: o.WeightsOption = None,
    transforms: o.TransformOptions,
    point: Annotated[
        str | None, typer.Option(help="Operating point; default: the one in use when saved.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to bind to; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="LEENET_FX_API_KEY", help="Key that requests need; default: none."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Largest number of samples that a stage runs at once.")
    ] = 8,
    max_delay: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a sample may wait for others.")
    ] = 2.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests being answered; further ones get status 503.")
    ] = 256,
    max_bytes: Annotated[int, typer.Option(min=1, help="Size of the largest request.")] = (
        10_000_000
    ),
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of the largest image.")] = (
        25_000_000
    ),
    rate: Annotated[
        float, typer.Option(min=0, help="Requests a second of each client; 0 for no limit.")
    ] = 100.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads of each operator.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run each stage as a deployment of Ray Serve.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, such as 'auto'; default: one that ends with the server."),
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(help="Replicas of each stage: 2, 1-4 as the load needs, or 1-4,1,1."),
    ] = None,
    replica_cpus: Annotated[
        float | None, typer.Option(min=0, help="CPUs that a replica reserves on the cluster.")
    ] = None,
) -> None:
    """Serve a network over HTTP: POST an image to /predict; a page to try it is at /.

    Samples of many requests wait before each stage and run together: in this process, or with --ray
    on replicas of each stage. The server answers programs of this machine only, unless --host says
    otherwise.
    """
    from leenet_fx.serving.dependencies import HTTP, require, require_ray
    from leenet_fx.serving.ray_settings import RaySettings, parse_replicas
    from leenet_fx.serving.settings import Settings

    if not ray and (ray_address, replicas, replica_cpus) != (None, None, None):
        raise typer.BadParameter("--ray-address, --replicas and --replica-cpus need --ray.")
    require(HTTP)
    if ray:
        require_ray(ray_address)
        threads = threads or 1
    from leenet_fx.serving.app import create_app
    from leenet_fx.serving.server import address_of, listen, serve_app

    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        batch_size=batch_size,
        max_delay=max_delay / 1000,
        queue=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        rate=rate,
    )
    cluster = RaySettings(
        replicas=parse_replicas(replicas or "1"),
        # Replicas of a cluster of its own have this machine to themselves.
        cpus=(0.01 if ray_address is None else 1.0) if replica_cpus is None else replica_cpus,
        address=ray_address,
    )
    # A port in use is found before the network is read, which takes longer.
    listen(settings).close()
    network = _open(folder, model, weights, transforms, threads)
    if point is not None:
        network.default_point = network.point(point).name
    predictor = _ray_stages(network, settings, cluster, threads or 1) if ray else None
    app = create_app(network, settings, predictor)
    listening = listen(settings)
    address = address_of(listening)
    with on_interrupt(lambda: "The server has stopped."):
        serve_app(
            app,
            listening,
            lambda: typer.echo(
                f"Serving '{folder}' at operating point '{network.default_point}' on {address}. "
                "Ctrl-C stops it.",
                err=True,
            ),
        )


def _ray_stages(
    network: ServedNetwork, settings: Settings, cluster: RaySettings, threads: int
) -> Predictor:
    from leenet_fx.serving.ray_cluster import StageDeployments
    from leenet_fx.serving.ray_stages import RayStages

    typer.echo("Starting the replicas of each stage on Ray.", err=True)
    return RayStages(StageDeployments(network, cluster, threads), settings)


def _open(
    folder: Path,
    model: str | None,
    weights: Path | None,
    transforms: o.TransformOptions,
    threads: int | None,
) -> ServedNetwork:
    import torch

    from leenet_fx.cli.images import transform_values
    from leenet_fx.cli.saved import build_backbone, options_of_fit
    from leenet_fx.serving.loading import is_saved, open_network

    changed = transform_values(transforms)
    if not is_saved(folder):
        if model is not None or weights is not None:
            raise typer.BadParameter(
                f"--model and --weights are for a saved network, which '{folder}' is not."
            )
        return open_network(folder, threads=threads, transform=changed)
    if threads is not None:
        torch.set_num_threads(threads)
    fitted = options_of_fit(folder)
    backbone = None
    if model is not None or fitted.get("model"):
        backbone = build_backbone(folder, fitted, model, weights)
    elif weights is not None:
        raise typer.BadParameter("--weights needs --model.")
    return open_network(folder, backbone, transform=changed)
