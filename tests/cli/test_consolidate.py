# SPDX-License-Identifier: Apache-2.0
"""A sharded checkpoint becomes one file, and nothing in it is run."""

import io
import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ixc_lightning.cli.consolidate import _Unpickler, as_file, consolidate, read_sharded
from ixc_lightning.cli.main import main
from ixc_lightning.types import InputError
from tests.cli.commands import words

WEIGHT = torch.arange(6.0).reshape(2, 3)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.fixture
def sharded(tmp_path):
    """Writes a checkpoint as Lightning does under FSDP2, by this process alone."""

    def write(**more):
        folder = tmp_path / "last.ckpt"
        groups = [{"lr": 0.5, "betas": (0.9, 0.95), "params": ["model.weight"]}]
        moments = {"state": {"model.weight": {"exp_avg": 2 * WEIGHT}}, "param_groups": groups, **more}
        state = {"state_dict": {"model.weight": WEIGHT}, "optimizer_0": moments, "optimizer_1": {"state": {}}}
        dcp.save(state, checkpoint_id=folder, no_dist=True)
        torch.save({"global_step": 3, "hyper_parameters": {"source": "tiny"}}, folder / "meta.pt")
        return folder

    return write


def test_the_file_is_what_one_process_would_have_written(sharded, tmp_path, capsys):
    file = tmp_path / "new/one.ckpt"
    main(["consolidate", str(sharded()), str(file)])
    saved = torch.load(file, weights_only=True)
    assert set(saved) == {"state_dict", "optimizer_states", "global_step", "hyper_parameters"}
    assert torch.equal(saved["state_dict"]["model.weight"], WEIGHT)
    first = saved["optimizer_states"][0]
    assert torch.equal(first["state"]["model.weight"]["exp_avg"], 2 * WEIGHT)
    assert first["param_groups"][0]["lr"] == 0.5
    assert saved["global_step"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["one.ckpt"]
    assert capsys.readouterr().out == f"wrote {file}\n"


def test_weights_alone_are_read_for_an_export_and_the_file_of_them_goes_again(sharded, tmp_path):
    target = tmp_path / "out/exported"
    with as_file(sharded(), beside=target) as file:
        saved = torch.load(file, weights_only=True)
        assert set(saved) == {"state_dict", "global_step", "hyper_parameters"}
        assert torch.equal(saved["state_dict"]["model.weight"], WEIGHT)
    assert not list(target.parent.iterdir())


def test_a_checkpoint_that_is_a_file_is_taken_as_it_is(tmp_path):
    with as_file(tmp_path / "one.ckpt", beside=tmp_path / "out") as file:
        assert file == tmp_path / "one.ckpt"


@pytest.mark.parametrize("place", ["index", "value", "settings"])
def test_nothing_that_a_checkpoint_holds_is_run(place, sharded, tmp_path):
    evil = Evil(tmp_path / "harm")
    folder = sharded(**({"note": evil} if place == "value" else {}))
    if place == "index":
        (folder / ".metadata").write_bytes(pickle.dumps(evil))
    if place == "settings":
        torch.save({"note": evil}, folder / "meta.pt")
    with pytest.raises(InputError, match=r"cannot be read: .*, or holds more than plain data"):
        read_sharded(folder)
    assert not (tmp_path / "harm").exists()


class Found:
    """Is saved as ``getattr`` of something and a name, as some versions of Python save enumerations."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


def test_the_members_of_enumerations_are_all_that_an_index_may_look_up():
    kind = dcp.metadata._MEM_FORMAT_ENCODING
    member = next(iter(kind))
    assert _Unpickler(io.BytesIO(pickle.dumps(Found(kind, member.name)))).load() is member
    properties = dcp.metadata.TensorProperties
    with pytest.raises(pickle.UnpicklingError, match="create_from_tensor"):
        _Unpickler(io.BytesIO(pickle.dumps(Found(properties, "create_from_tensor")))).load()


@pytest.mark.parametrize("missing", ["meta.pt", ".metadata"])
def test_a_folder_that_was_not_written_to_its_end_is_refused(missing, sharded):
    folder = sharded()
    (folder / missing).unlink()
    with pytest.raises(InputError, match=r"is no sharded checkpoint, or was not written to its end"):
        read_sharded(folder)


def test_a_part_that_is_cut_short_is_refused(sharded):
    folder = sharded()
    (part,) = folder.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"last.ckpt cannot be read: .* It was not written to its end"):
        read_sharded(folder)


def test_what_stands_in_the_file_s_place_is_kept(sharded, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="mine exists: name a file that does not, or remove it"):
        consolidate(str(sharded()), str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_one_device_is_told_how_to_go_on_with_a_sharded_checkpoint(
    sharded, digits, tiny_folder, tmp_path, capsys
):
    with pytest.raises(SystemExit) as ended:
        main(words("fit", "reward", tiny_folder, digits, tmp_path, "--ckpt_path", str(sharded())))
    assert ended.value.code == 2
    assert "python -m ixc_lightning consolidate" in capsys.readouterr().err
