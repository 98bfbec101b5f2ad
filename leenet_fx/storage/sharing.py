"""push_to_hub: a saved network on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leenet_fx.errors import InputError
from leenet_fx.storage.exits import write_files
from leenet_fx.storage.hub import PREFIX, endpoint, hub_errors, repository
from leenet_fx.surgery.module import EarlyExitModule


def push_to_hub(
    ee: EarlyExitModule,
    repo_id: str,
    *,
    backbone: bool = False,
    fit: Mapping[str, Any] | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a network with early exits",
) -> str:
    """Upload a network to the Hugging Face hub, as `save` writes it, in one commit.

    `leenet_fx.load("hf:owner/name")` loads it.

    Args:
        ee: the network.
        repo_id: "owner/name"; created if needed.
        backbone: whether to include all weights of the backbone.
        fit: record of the training run, `FitResult.to_dict()`.
        license: licence of the weights, for the card; None takes what timm says of the backbone.
        private: whether a new repository is private; None takes the owner's default.
        token: of the hub; None takes that of `hf auth login`.
        commit_message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: no name of a repository; or as `save`.
        StorageError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    name, revision = repository(repo_id)
    if revision is not None:
        raise InputError(f"Expected 'owner/name' without a revision, got {repo_id!r}.")
    with tempfile.TemporaryDirectory() as folder:
        write_files(
            ee,
            Path(folder),
            backbone=backbone,
            fit=fit,
            license=license,
            place=f"{PREFIX}{name}",
        )
        with hub_errors(f"'{repo_id}' cannot be uploaded"):
            api = HfApi(endpoint=endpoint(), token=token)
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message=commit_message
            )
    return str(commit.commit_url)
