# SPDX-License-Identifier: Apache-2.0
"""The packaged recipes: found by name wherever the command runs, unless a file of that name lies there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from ixc_lightning.types import InputError

OPTIONS = ("--config", "-c")


def packaged_recipes() -> dict[str, Path]:
    """Path of every recipe that came with the package, by name: ``recipes/paper/reward.yaml``."""
    root = Path(str(files("ixc_lightning.recipes")))
    return {f"recipes/{path.relative_to(root)}": path for path in sorted(root.rglob("*.yaml"))}


def find_recipe(name: str) -> str:
    """Path of a recipe: the file of that name if there is one, else the packaged recipe.

    Raises:
        InputError: there is neither.
    """
    if Path(name).expanduser().exists():
        return str(Path(name).expanduser())
    packaged = packaged_recipes()
    if name in packaged:
        return str(packaged[name])
    close = difflib.get_close_matches(name, packaged, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise InputError(
        f"there is no recipe {name}: {meant}`python -m ixc_lightning recipes` lists those of the package"
    )


def find_recipes(words: Sequence[str]) -> list[str]:
    """The words of a command line, with every recipe that ``--config`` names found."""
    return list(_found(words))


def _found(words: Sequence[str]) -> Iterator[str]:
    previous = ""
    for word in words:
        option, equals, value = word.partition("=")
        if previous in OPTIONS:
            yield find_recipe(word)
        elif equals and option in OPTIONS:
            yield f"{option}={find_recipe(value)}"
        else:
            yield word
        previous = word
