# SPDX-License-Identifier: Apache-2.0
"""The official functions of the package rewardbench, where it is installed.

The package itself cannot be imported beside today's transformers, so the functions are taken out of its
source text. They are looked for where ``pip install --no-deps rewardbench`` puts them.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

WANTED = ("calculate_scores_per_section", "sample_stats", "process_single_model", "reroll_and_score_dataset")


def official() -> SimpleNamespace:
    """The functions and the constants of rewardbench; skips the test where it is not installed."""
    spec = importlib.util.find_spec("rewardbench")
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("rewardbench is not installed: pip install --no-deps rewardbench==0.1.4")
    folder = Path(next(iter(spec.submodule_search_locations)))
    constants: dict[str, object] = {}
    exec(compile((folder / "constants.py").read_text(), "constants.py", "exec"), constants)
    tree = ast.parse((folder / "utils.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in WANTED]
    functions: dict[str, object] = {"np": np, "math": math, "pd": pandas, "Dataset": datasets.Dataset}
    exec(compile(tree, "utils.py", "exec"), functions)
    names = ("EXAMPLE_COUNTS", "SUBSET_MAPPING")
    return SimpleNamespace(
        **{name: functions[name] for name in WANTED}, **{name: constants[name] for name in names}
    )
