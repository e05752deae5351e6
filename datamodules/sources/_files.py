# SPDX-License-Identifier: Apache-2.0
"""The files of a data set: here, or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

from ixc_lightning.datamodules.sources._reading import SUFFIXES
from ixc_lightning.types import InputError

HUB = re.compile(r"(hf://datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<pattern>.+))?")
SPLITS = {
    "train": "train",
    **dict.fromkeys(("test", "eval", "heldout"), "test"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
}
"""Words of file names that tell the split."""


def name_of(source: str) -> str:
    """Return a name for what ``source`` stands for: that of the repository, the file or the folder."""
    path = Path(source)
    if not path.exists() and (match := _hub_match(source)):
        return match["repo"].partition("/")[2]
    while set(path.name) & set("*?["):
        path = path.parent
    return path.absolute().name.split(".")[0] or "data"


def find_files(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Give the paths of the files that ``source`` stands for; those of the hub are fetched one by one.

    Args:
        source: a file, a folder, a glob pattern, or a data set of the hub: ``OWNER/NAME`` or
            ``hf://datasets/OWNER/NAME[@REVISION][/PATTERN]``.
        suffixes: the ends of the file names that a folder is searched for.

    Raises:
        InputError: naming ``source``, if nothing is there, the hub cannot be reached, or a folder holds
            more than one split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        names = sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())
        yield from (path / name for name in _chosen(source, names, suffixes))
    elif found := sorted(glob(str(path), recursive=True)):
        yield from (Path(name) for name in found if Path(name).is_file())
    elif match := _hub_match(source):
        yield from _hub_files(source, match["repo"], match["revision"], match["pattern"], suffixes)
    else:
        raise InputError(f"{source}: no such file or folder; name a file, a folder, a pattern or a hub id")


def _hub_match(source: str) -> re.Match[str] | None:
    """Return the parts of a hub id; a path to a file that is not there is none."""
    match = HUB.fullmatch(source)
    if match and not match[1] and (match["pattern"] or source.startswith(".") or source.endswith(SUFFIXES)):
        return None
    return match


def _chosen(source: str, names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    chosen = [name for name in names if name.endswith(suffixes)]
    if not chosen:
        raise InputError(f"{source}: holds no file that ends in {', '.join(suffixes)}; name the data file")
    splits: dict[str, str] = {}
    for name in chosen:
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLITS:
                splits.setdefault(SPLITS[word], name)
    if len(splits) > 1:
        raise InputError(
            f"{source}: holds several splits ({', '.join(sorted(splits.values()))}), and to mix them would "
            "train on test data; name the files of one by a pattern such as train-*.parquet"
        )
    return chosen


def _hub_files(
    source: str, repo: str, revision: str | None, pattern: str | None, suffixes: tuple[str, ...]
) -> Iterator[Path]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        # One commit for all files, also if the data set changes meanwhile.
        info = HfApi().dataset_info(repo, revision=revision)
        names = sorted(file.rfilename for file in info.siblings or [])
        if pattern:
            names = [name for name in names if fnmatch(name, pattern)]
            if not names:
                raise InputError(f"{source}: the data set has no such file; look at its page on the hub")
        else:
            names = _chosen(source, names, suffixes)
        for name in names:
            yield Path(hf_hub_download(repo, name, repo_type="dataset", revision=info.sha))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}: is no file or folder here, and the hub cannot give it ({reason}); correct the name, "
            "or download it and name the folder"
        ) from None
