# SPDX-License-Identifier: Apache-2.0
"""What is on disk is what gets installed: packages, recipes, and versions."""

import ast
import configparser
import doctest
import importlib
import importlib.metadata
import re
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ixc_lightning
from ixc_lightning.cli.recipes import packaged_recipes

ROOT = Path(__file__).parents[1]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
NUM_RECIPES = 22  # counted by hand: a recipe that no test visits shows here


def setup_cfg(section: str = "options") -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config[section]


def package_folders() -> dict[str, str]:
    lines = setup_cfg()["package_dir"].strip().splitlines()
    return dict(line.replace(" ", "").split("=") for line in lines)


def on_disk(pattern: str) -> dict[str, Path]:
    """The files below the package folders that match ``pattern``, by dotted package and file name."""
    return {
        ".".join([package, *path.relative_to(ROOT / folder).parts]): path
        for package, folder in package_folders().items()
        for path in (ROOT / folder).rglob(pattern)
    }


def requirements(*groups: str) -> list[Requirement]:
    """The requirements of the named groups, ``dependencies`` or an extra, or of all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    return [Requirement(line) for group in groups or lines for line in lines[group]]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


MODULES = sorted(name.removesuffix(".py").removesuffix(".__init__") for name in on_disk("*.py"))


def test_every_package_on_disk_is_declared():
    declared = setup_cfg()["packages"].split()
    assert sorted(declared) == sorted(name.removesuffix(".__init__.py") for name in on_disk("__init__.py"))


def test_every_module_is_in_a_package():
    orphans = [path for path in on_disk("*.py").values() if not (path.parent / "__init__.py").exists()]
    assert orphans == []


def test_the_installed_version_is_that_of_the_source():
    assert importlib.metadata.version("ixc-lightning") == ixc_lightning.__version__


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_a_module_imports_by_its_public_name_and_its_examples_hold(module):
    loaded = importlib.import_module(module)
    assert loaded.__name__ == module
    assert doctest.testmod(loaded).failed == 0


def test_every_recipe_on_disk_is_listed():
    assert sorted(packaged_recipes()) == sorted(
        path.relative_to(ROOT).as_posix() for path in on_disk("*.yaml").values()
    )
    assert len(packaged_recipes()) == NUM_RECIPES


def test_every_recipe_is_package_data():
    packages = [
        package for package in setup_cfg()["packages"].split() if package.startswith("ixc_lightning.recipes")
    ]
    found = {f"{package}.{entry.name}" for package in packages for entry in files(package).iterdir()}
    assert {name for name in found if name.endswith(".yaml")} == set(on_disk("*.yaml"))
    assert {package: setup_cfg("options.package_data").get(package) for package in packages} == dict.fromkeys(
        packages, "*.yaml"
    )


def test_constraints_name_versions_and_no_places():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert wrong == []
    assert not re.search(r"://|@|--|\.(com|org|net|io)\b", "\n".join(lines))


def test_what_is_imported_on_loading_is_a_base_requirement_and_the_rest_is_an_extra():
    distributions = importlib.metadata.packages_distributions()
    base = {canonical(requirement.name) for requirement in requirements("dependencies")}
    declared = {canonical(requirement.name) for requirement in requirements()}
    missing = set()
    for path in on_disk("*.py").values():
        tree = ast.parse(path.read_text())
        optional = {
            node
            for function in ast.walk(tree)
            if isinstance(function, FUNCTIONS | ast.Try)  # what a try guards is optional
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.split(".")[0] for name in names} - {"ixc_lightning", *sys.stdlib_module_names}:
                owners = {canonical(name) for name in distributions.get(top, [top])}
                if not owners & (declared if node in optional else base):
                    missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert missing == set()


def test_every_requirement_has_a_pin_that_satisfies_it():
    unpinned = {"flash-attn"}  # is built against the CUDA of the machine
    wrong = [
        f"{requirement} is constrained to {pins().get(canonical(requirement.name))}"
        for requirement in requirements()
        if requirement.name not in unpinned
        and pins().get(canonical(requirement.name), "none") not in requirement.specifier
    ]
    assert wrong == []
