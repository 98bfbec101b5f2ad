"""A server of networks with exits: HTTP in front of stages that regroup samples of many requests.

    leenet-fx serve FOLDER

In Python: `open_network` reads a saved or an exported network, `create_app` makes the ASGI
application, `run_server` binds a port and serves it. They need the extra `serve`.
"""

from leenet_fx.serving.loading import open_network
from leenet_fx.serving.settings import Settings

__all__ = ["Settings", "open_network"]
