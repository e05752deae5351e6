# SPDX-License-Identifier: Apache-2.0
"""An exported folder on the Hugging Face hub, in one commit."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ixc_lightning.publishing.redaction import public
from ixc_lightning.types import InputError

TOKEN = "HF_TOKEN"
"""Variable of the environment that holds the token; a login that lies on the disk is not looked for."""
WEIGHTS = (".safetensors", ".safetensors.index.json")
"""Of the files that a repository has and the folder lacks, those that are taken out."""


def check_push(repo: str) -> None:
    """Find out, without asking the hub, that a folder could not be pushed.

    Raises:
        InputError: the repository's name cannot be one, or there is no token.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"push_to_hub: {repo!r} is no name of a repository ({error}); give name or owner/name"
        ) from None
    if not os.environ.get(TOKEN):
        raise InputError(
            f"push_to_hub: there is no token to write to {repo} with: set {TOKEN} in the environment"
        )


def push_folder(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder to a model repository of the hub, which is made if it is not there.

    Large files go first, and the hub keeps those that have arrived, so a push that was cut off goes on with
    the others when it is made again. What the repository shows changes in one commit or not at all; weights
    of an earlier push that the folder does not have go in the same commit. If others commit meanwhile, the
    push is refused. The token is ``HF_TOKEN`` of the environment.

    Args:
        folder: complete, as ``export_folder`` leaves it.
        repo: ``owner/name``, or the name alone for the token's owner.
        private: of a repository that is made here; one that exists stays what it is.

    Returns:
        The address of the commit.

    Raises:
        InputError: naming repository and reason, if it cannot be pushed. The folder stays as it is.
    """
    check_push(repo)
    api = HfApi(token=os.environ[TOKEN])
    try:
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        info = api.model_info(repo_id)
        own = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in own}
        there = {sibling.rfilename for sibling in info.siblings or ()}
        stale = sorted(name for name in there - names.keys() if name.endswith(WEIGHTS))
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, path) for name, path in names.items()),
            ],
            commit_message="Export from ixc_lightning",
            parent_commit=info.sha,
        )
    except Exception as error:  # whatever it was: the model must be known to be safe, and where it lies
        causes = [error] if error.__cause__ is None else [error, error.__cause__]
        reason = ": ".join(" ".join(str(cause).split()).rstrip(".") for cause in causes)
        raise InputError(
            f"{folder} is complete, but could not be pushed to {repo}: {public(reason)}. What has arrived is "
            f"kept: push again with `hf upload {repo} {folder}`"
        ) from error
    return str(commit.commit_url)
