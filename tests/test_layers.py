# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source text, so that it holds under every kind of installation."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "ixc_lightning": ROOT / "ixc_lightning",
    "ixc_lightning.datamodules": ROOT / "datamodules",
    "ixc_lightning.callbacks": ROOT / "callbacks",
    "ixc_lightning.recipes": ROOT / "recipes",
}

# layer -> the layers it may import; every layer may import itself, and the version
LAYERS = {
    "types": set(),
    "functional": {"types"},
    "processors": {"types"},
    "models": {"types", "functional"},
    "publishing": {"types"},
    "planning": {"types", "functional", "models"},
    "export": {"types", "functional", "models", "processors", "publishing"},
    "rollout": {"types", "functional", "models", "processors"},
    "metrics": {"types", "functional"},
    "modules": {"types", "functional", "models", "processors", "rollout", "metrics"},
    "datamodules": {"types", "functional", "processors"},
    "callbacks": {"types", "export", "publishing"},
    "scoring": {"types", "functional", "models", "datamodules"},  # a reward model together with its processor
    "serving": {"types", "functional", "models", "datamodules", "scoring"},
    "recipes": set(),
}
ENTRANCES = {"cli", "quickstart", "__main__"}  # they may import every layer, and no layer may import them
LAYERS |= dict.fromkeys(ENTRANCES, set(LAYERS) | ENTRANCES)

# third-party package -> where it may be imported: layers, or single modules
CONFINED = {
    "lightning": {"modules", "datamodules", "callbacks", "metrics", *ENTRANCES},
    "transformers": {
        "models",
        "rollout",
        "planning",
        "processors",
        "datamodules.processing",  # data knows a processor, never a model
    },
    "webdataset": {"datamodules"},
}
FUNCTIONAL_MAY_IMPORT = {"torch", "jaxtyping", "ixc_lightning", *sys.stdlib_module_names}
# At the repository root these names import too, and load every class a second time.
BARE = {"datamodules", "callbacks", "recipes"}


def modules() -> dict[str, Path]:
    """Every source file of the package by its dotted name, ``__init__`` files by that of their package."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """Line and dotted name of everything that ``source`` imports, however it is spelt.

    ``from a import b`` counts as ``a.b``, because ``b`` may be a module.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}
            and isinstance(node.args[0], ast.Constant)
        ):
            names.append((node.lineno, str(node.args[0].value)))
    return names


def layer_of(name: str) -> str:
    """The first component below ``ixc_lightning``: its layer, or '' for the package itself."""
    return [*name.split("."), ""][1]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What ``module`` imports and may not, one message each."""
    layer, inner, found = layer_of(module), module.partition(".")[2], []
    for line, name in imported(source, module, is_package):
        top, target = name.split(".")[0], layer_of(name)
        if top in BARE:
            problem = f"must say ixc_lightning.{top}"
        elif layer == "functional" and top not in FUNCTIONAL_MAY_IMPORT:
            problem = "functional imports torch alone"
        elif top in CONFINED and not {layer, inner} & CONFINED[top]:
            problem = f"{top} belongs in {sorted(CONFINED[top])}"
        elif top == "ixc_lightning" and target in LAYERS and target not in {layer, *LAYERS.get(layer, ())}:
            problem = f"{layer or 'the package'} may import {sorted(LAYERS.get(layer, ()))}"
        else:
            continue
        found.append(f"{module}:{line} imports {name}: {problem}")
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_the_layers_below_it(module):
    path = modules()[module]
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


def test_every_module_has_a_layer():
    assert {layer_of(module) for module in modules()} - {""} <= set(LAYERS)


@pytest.mark.parametrize("folder", ["tests", "docs", "benchmarks"])
def test_nothing_beside_the_package_uses_the_bare_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        tops = {name.split(".")[0] for _, name in imported(path.read_text(), f"{folder}.{path.stem}", False)}
        assert not tops & BARE, path


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ixc_lightning.functional.preference", "import ixc_lightning.models.reward_model"),
        ("ixc_lightning.functional.preference", "from ixc_lightning import models"),
        ("ixc_lightning.functional.preference", "from ..models import reward_model"),
        ("ixc_lightning.functional.preference", "from .. import models"),
        ("ixc_lightning.functional.preference", "import numpy"),
        ("ixc_lightning.types", "from . import functional"),
        ("ixc_lightning.models.families.qwen", "from ...modules.reward import Reward"),
        ("ixc_lightning.models.reward_model", "import lightning.pytorch as pl"),
        ("ixc_lightning.modules.reward", "from transformers import AutoModel"),
        ("ixc_lightning.modules.reward", "def f():\n    from ixc_lightning.datamodules import preference"),
        ("ixc_lightning.modules.reward", "from ixc_lightning import cli"),
        ("ixc_lightning.modules.reward", "import webdataset"),
        ("ixc_lightning.datamodules.shards", "from transformers import AutoProcessor"),
        ("ixc_lightning.datamodules.shards", "from ixc_lightning.models import reward_model"),
        ("ixc_lightning.datamodules.shards", "__import__('ixc_lightning.models')"),
        ("ixc_lightning.callbacks.rollouts", "from ixc_lightning.modules import reward"),
        ("ixc_lightning.cli", "from datamodules import preference"),
        ("ixc_lightning.cli", "import callbacks.rollouts"),
        ("ixc_lightning.recipes", "from ixc_lightning import types"),
        ("ixc_lightning", "from ixc_lightning import types"),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert len(violations(source, module, is_package=module.count(".") == 0)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "ixc_lightning.functional.preference",
            "import math, torch\nfrom ixc_lightning.types import Prompts",
        ),
        ("ixc_lightning.models.families.qwen", "from .. import reward_model\nimport transformers"),
        ("ixc_lightning.modules.reward", "from lightning.pytorch import callbacks"),
        ("ixc_lightning.modules.reward", "from ixc_lightning import __version__, functional, models"),
        ("ixc_lightning.datamodules.processing", "from transformers import AutoProcessor"),
        ("ixc_lightning.datamodules.shards", "import webdataset\nfrom ixc_lightning.datamodules import a"),
        ("ixc_lightning.cli", "from ixc_lightning import datamodules, modules, export"),
    ],
)
def test_a_permitted_import_passes(module, source):
    assert violations(source, module) == []
