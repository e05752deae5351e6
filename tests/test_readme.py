# SPDX-License-Identifier: Apache-2.0
"""What the README says is there, is there."""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line]
TREE = next(block for language, block in BLOCKS if not language)
IGNORED = (ROOT / ".gitignore").read_text().replace("/\n", "\n").split()
NOT_LISTED = [*IGNORED, "README.md", "__init__.py", "py.typed", ".*"]


def listed_tree(text: str) -> dict[str, set[str]]:
    """The children that the tree gives to each folder, by path from the root; folders end with a slash."""
    folders: dict[str, set[str]] = {"": set()}
    open_folders = [""]
    for line in text.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        del open_folders[depth + 1 :]
        folders.setdefault(open_folders[-1], set()).add(name)
        if name.endswith("/"):
            open_folders.append(open_folders[-1] + name)
    return folders


def disk_tree(folder: str) -> set[str]:
    """What ``folder`` holds, less what version control ignores; empty folders do not count."""
    return {
        entry.name + "/" * entry.is_dir()
        for entry in (ROOT / folder).iterdir()
        if not any(fnmatch.fnmatch(entry.name, pattern) for pattern in NOT_LISTED)
        and (entry.is_file() or any(path.is_file() and path.suffix != ".pyc" for path in entry.rglob("*")))
    }


def test_the_tree_names_only_what_exists():
    named = {folder + name for folder, names in listed_tree(TREE).items() for name in names}
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("folder", ["", "ixc_lightning/"])
def test_the_tree_names_all_that_exists(folder):
    assert disk_tree(folder) - listed_tree(TREE)[folder] == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page):
    quoted = re.findall(r"`([^`\n]+)`|\]\(([^)#\s]+)\)", (ROOT / page).read_text())
    words = {word for pair in quoted for text in pair for word in text.split()}
    paths = {word for word in words if re.fullmatch(r"[\w./-]+(/|\.(py|yaml|md|toml|cfg|txt))", word)}
    assert {
        path for path in paths if not any((base / path).exists() for base in (ROOT, ROOT / "ixc_lightning"))
    } == set()


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([\w-]+)`", (ROOT / page).read_text())}
    named |= {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert named - targets == set()


def test_every_command_in_the_readme_starts_in_a_known_way():
    known = ("make ", "python -m ixc_lightning ", "pip install ")
    assert [line for line in COMMANDS if not line.startswith(known)] == []


def test_every_subcommand_in_the_readme_exists():
    run = subprocess.run(
        [sys.executable, "-m", "ixc_lightning", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    named = {line.split()[3] for line in COMMANDS if line.startswith("python -m ixc_lightning ")}
    assert named
    assert {
        name for name in named if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", run.stdout)
    } == set()


def test_every_recipe_has_a_row():
    table = re.search(r"<!-- recipes -->(.*?)<!-- /recipes -->", README, flags=re.DOTALL)[1]
    rows = re.findall(r"^\| `([\w./-]+\.yaml)`", table, flags=re.MULTILINE)
    on_disk = [path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")]
    assert sorted(rows) == sorted(on_disk)


def test_the_quickstart_table_has_its_place():
    assert README.count("<!-- quickstart -->") == README.count("<!-- /quickstart -->") == 1
