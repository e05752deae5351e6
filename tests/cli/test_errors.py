# SPDX-License-Identifier: Apache-2.0
"""Every mistake of a person's ends in one message that names it, status 2, no traceback and no hang."""

import io
import json
import shutil
import tarfile

import pytest
import torch
from PIL import Image

from ixc_lightning.cli.main import main
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from tests.cli.commands import words

WORKERS = pytest.mark.parametrize("workers", [0, 1])

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail, and gives back its message."""

    def run(command):
        with pytest.raises(SystemExit) as ended:
            main(command)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert "Traceback" not in said
        assert said.count("error: ") == 1
        return said[said.index("error: ") :]

    return run


def _picture():
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return stream.getvalue()


def _record(number):
    parts = [{"type": "image", "file": "00.png"}, {"type": "text", "text": "which digit?"}]
    return {
        "id": str(number),
        "source": "test",
        "domain": "reading",
        "messages": [{"role": "user", "content": parts}],
        "chosen": "two",
        "rejected": "three",
    }


def _rewrite(shard, change):
    """Write a tar again, with ``change(name, bytes)`` in the place of each member; None leaves it out."""
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w") as tar:
        for name, data in members:
            changed = change(name, data)
            if changed is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))
    shard.with_suffix(".index.jsonl").unlink()


def _edit(**fields):
    def change(name, data):
        if name != "sample-3.json":
            return data
        return json.dumps({**json.loads(data), **fields}).encode()

    return change


def _without_picture(name, data):
    return None if name == "sample-3.00.png" else data


def _cut_picture(name, data):
    return data[:60] if name == "sample-3.00.png" else data


FAULTS = {
    "unknown field": (_edit(choosen="x"), "choosen: unknown field, did you mean 'chosen'?"),
    "missing media": (_without_picture, "names '00.png', but the tar holds no media"),
    "empty response": (_edit(rejected=" "), "rejected[0].content: is empty"),
    "unreadable image": (_cut_picture, "00.png"),
}


@WORKERS
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_record_is_named_with_its_shard_and_key(
    fault, workers, fails, tiny_folder, digits, tmp_path
):
    change, expected = FAULTS[fault]
    samples = [Sample(f"sample-{n}", _record(n), {"00.png": _picture()}) for n in range(8)]
    write_shards(samples, tmp_path / "shards", kind="preference")
    _rewrite(tmp_path / "shards/shard-000000.tar", change)
    more = ("--data.train", str(tmp_path / "shards"), "--data.num_workers", str(workers))
    message = fails(words("fit", "reward", tiny_folder, digits, tmp_path, *more))
    assert "shard-000000.tar" in message
    assert "sample-3" in message
    assert expected in message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("data.train", "/nowhere/shards", "/nowhere/shards: no such shard"),
        ("model.model.source", "/nowhere/model", "'/nowhere/model'"),
        ("trainer.strategy", "nonsense", "nonsense"),
        ("ckpt_path", "/nowhere/last.ckpt", "there is no checkpoint /nowhere/last.ckpt"),
        ("export.folder", "pyproject.toml", "pyproject.toml is a file"),
    ],
)
def test_a_setting_that_names_nothing_usable_is_named(
    option, value, expected, fails, tiny_folder, digits, tmp_path
):
    command = words("fit", "reward", tiny_folder, digits, tmp_path, f"--{option}", value)
    assert expected in fails(command)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be had")
def test_a_gpu_where_there_is_none_is_named_with_what_to_give_instead(fails, tiny_folder, digits, tmp_path):
    message = fails(words("fit", "reward", tiny_folder, digits, tmp_path, "--trainer.accelerator", "gpu"))
    assert "no GPU" in message
    assert "--trainer.accelerator cpu" in message


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["fit", "--config", "recipes/nonsense.yaml"], "there is no recipe recipes/nonsense.yaml"),
        (["nonsense"], "there is no command 'nonsense'"),
        (["convert", "nonsense"], "there is no converter 'nonsense'; there are: "),
        (["export", "/nowhere/last.ckpt", "out"], "there is no checkpoint /nowhere/last.ckpt"),
        (["export", "tests", "out"], "tests is no sharded checkpoint"),
        (["export", "README.md", "out"], "README.md cannot be read as a checkpoint"),
    ],
)
def test_a_name_that_is_not_known_is_named(command, expected, fails):
    assert expected in fails(command)


def test_a_misspelt_key_is_named(capsys, tiny_folder, digits, tmp_path):
    command = words("fit", "reward", tiny_folder, digits, tmp_path, "--model.label_smothing", "0.1")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code != 0
    assert "label_smothing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(digits, tiny_folder, tmp_path_factory):
    """A checkpoint of a reward model over a copy of the tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_folder, folder / "model")
    main(words("fit", "reward", folder / "model", digits, folder))
    return folder, next((folder / "reward").rglob("*.ckpt"))


def test_training_on_from_a_checkpoint_of_another_architecture_is_refused(
    checkpoint, fails, tiny, digits, tiny_folder, tmp_path
):
    more = ("--ckpt_path", str(checkpoint[1]), "--data.processor", str(tiny_folder))
    message = fails(words("fit", "reward", tiny("internvl").folder, digits, tmp_path, *more))
    assert "another architecture" in message


def test_a_file_that_is_no_checkpoint_is_refused(fails, tiny_folder, digits, tmp_path):
    (tmp_path / "no.ckpt").write_text("not a checkpoint")
    more = ("--ckpt_path", str(tmp_path / "no.ckpt"))
    assert "no checkpoint" in fails(words("fit", "reward", tiny_folder, digits, tmp_path, *more))


def test_export_of_a_checkpoint_whose_model_was_replaced_is_refused(checkpoint, fails, tiny, tmp_path):
    folder, path = checkpoint
    shutil.rmtree(folder / "model")
    shutil.copytree(tiny("internvl").folder, folder / "model")
    assert "another architecture" in fails(["export", str(path), str(tmp_path / "out")])
