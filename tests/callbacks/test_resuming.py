# SPDX-License-Identifier: Apache-2.0
"""A folder belongs to one run at a time, and to runs that do the same."""

import lightning as L
import pytest

from ixc_lightning.callbacks.resuming import IDENTITY, RunFolder
from ixc_lightning.types import InputError


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)


@pytest.fixture
def opened(trainer, tmp_path, request):
    """Opens the folder; it is closed behind the test."""

    def build(name="run"):
        made = RunFolder(tmp_path / name, trainer)
        request.addfinalizer(made.close)
        return made

    return build


def test_a_later_run_knows_what_an_earlier_one_did(opened):
    first = opened()
    first.parts.append([{"row": 3}, {"row": 1}])
    first.close()
    assert sorted(opened().done().tolist()) == [1, 3]


def test_two_runs_cannot_have_the_folder_until_the_first_lets_it_go(opened):
    first = opened()
    with pytest.raises(InputError, match="another run is writing there; give another folder"):
        opened()
    first.close()
    opened()


def test_entries_of_another_run_are_refused_by_what_differs(opened):
    folder = opened()
    folder.check({"data": "a", "answers": "b"})  # nothing is known yet
    folder.note({"data": "a", "answers": "b"})
    folder.check({"data": "a"})
    folder.check({"data": "a", "answers": "b"})
    with pytest.raises(InputError, match="another run, whose answers was another one"):
        folder.check({"data": "a", "answers": "c"})


@pytest.mark.parametrize("text", ["{", "3", '["data"]'])
def test_a_note_that_cannot_be_read_is_named(opened, tmp_path, text):
    folder = opened()
    (tmp_path / "run" / IDENTITY).write_text(text)
    with pytest.raises(InputError, match=r"run\.json: cannot be read .*delete the folder"):
        folder.check({"data": "a"})


def test_a_folder_that_cannot_be_made_is_named(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be written to"):
        opened("file/run")
