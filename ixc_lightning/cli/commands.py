# SPDX-License-Identifier: Apache-2.0
"""The commands that are no verb of a Trainer. Each loads what it needs when it runs: help stays quick."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import jsonargparse

from ixc_lightning.cli.recipes import packaged_recipes
from ixc_lightning.types import InputError


class Command(NamedTuple):
    """One command: what it does, in a line, and the function that takes its words."""

    summary: str
    run: Callable[[list[str]], None]


def call(function: Callable[..., object], words: Sequence[str], *, name: str) -> None:
    """Call a function with arguments from the command line; its docstring and signature are the help page."""
    jsonargparse.auto_cli(
        function,
        args=list(words),
        parser_class=jsonargparse.ArgumentParser,
        prog=f"python -m ixc_lightning {name}",
    )


def convert(words: list[str]) -> None:
    """Write shards from a data set, by the module of that name in ``datamodules/sources``."""
    package = import_module("ixc_lightning.datamodules.sources")
    names = [
        module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    ]
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(f"usage: python -m ixc_lightning convert NAME ...\n\nNAME is one of: {', '.join(names)}")
    elif name in names:
        call(import_module(f"{package.__name__}.{name}").convert, words[1:], name=f"convert {name}")
    else:
        raise InputError(f"there is no converter {name!r}; there are: {', '.join(names)}")


def export(words: list[str]) -> None:
    """Write a Hugging Face folder from a checkpoint."""
    call(import_module("ixc_lightning.cli.checkpoints").export_checkpoint, words, name="export")


def card(words: list[str]) -> None:
    """Write evaluations into the card of an exported model."""
    call(import_module("ixc_lightning.cli.cards").card, words, name="card")


def consolidate(words: list[str]) -> None:
    """Make one file of a sharded checkpoint."""
    call(import_module("ixc_lightning.cli.consolidate").consolidate, words, name="consolidate")


def index(words: list[str]) -> None:
    """Write the sidecars and the manifest of shards, or check them."""
    # The parser asks for --check true; the word alone means the same.
    is_alone = [value not in ("true", "false") for value in [*words[1:], ""]]
    words = [
        "--check=true" if word == "--check" and alone else word
        for word, alone in zip(words, is_alone, strict=False)
    ]
    call(import_module("ixc_lightning.cli.shards").index, words, name="index")


def inspect(words: list[str]) -> None:
    """Show what shards hold."""
    call(import_module("ixc_lightning.cli.inspect").inspect, words, name="inspect")


def compare(words: list[str]) -> None:
    """Compare two models on a benchmark, item by item."""
    call(import_module("ixc_lightning.cli.compare").compare, words, name="compare")


def convert_checkpoint(words: list[str]) -> None:
    """Convert the released InternLM-XComposer2.5, or a model trained from it back."""
    module = import_module("ixc_lightning.cli.convert_checkpoint")
    call(module.convert_checkpoint, words, name="convert-checkpoint")


def plan(words: list[str]) -> None:
    """Say whether a recipe fits on some GPUs."""
    import_module("ixc_lightning.cli.plan").plan(words)


def serve(words: list[str]) -> None:
    """Serve a reward model over HTTP."""
    call(import_module("ixc_lightning.cli.serve").serve, words, name="serve")


def tiny(words: list[str]) -> None:
    """Write the tiny model with fresh weights."""
    call(import_module("ixc_lightning.models.tiny").build_tiny, words, name="tiny")


def quickstart(words: list[str]) -> None:
    """Train and evaluate the whole chain on handwritten digits."""
    call(import_module("ixc_lightning.cli.quickstart").quickstart, words, name="quickstart")


def recipes(words: list[str]) -> None:
    """List the packaged recipes with the first line of their headers."""
    call(list_recipes, words, name="recipes")


def list_recipes() -> None:
    """List the recipes that came with the package; each can be named as --config."""
    recipes = packaged_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        print(f"{name:<{width}}  {path.read_text().splitlines()[0].lstrip('# ')}")


COMMANDS = {
    "quickstart": Command(
        "train and evaluate the whole chain on handwritten digits, in minutes on a CPU", quickstart
    ),
    "recipes": Command("list the packaged recipes", recipes),
    "convert": Command("write shards from a data set", convert),
    "index": Command("index shards that came from elsewhere, or check their checksums", index),
    "inspect": Command("show what shards hold, in tables or on a page with pictures", inspect),
    "export": Command("write a Hugging Face folder from a checkpoint", export),
    "consolidate": Command("make one file of a sharded checkpoint", consolidate),
    "card": Command("write evaluations into the card of an exported model", card),
    "compare": Command("compare two models on a benchmark, item by item", compare),
    "plan": Command("say what a recipe takes of a GPU's memory and time, from its config alone", plan),
    "serve": Command("serve a reward model over HTTP", serve),
    "convert-checkpoint": Command(
        "convert the released InternLM-XComposer2.5 for use here, or back", convert_checkpoint
    ),
    "tiny": Command("write a tiny vision-language model with fresh weights", tiny),
}
