# SPDX-License-Identifier: Apache-2.0
"""The commands about shards say what they did, and fail with one message."""

import shutil

import pytest

from ixc_lightning.cli.main import main
from ixc_lightning.datamodules.manifest import MANIFEST


@pytest.fixture
def bare(digits, tmp_path):
    """The tars of a data set without their sidecars and manifest."""
    for path in (digits / "preference/train").glob("*.tar"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_index_writes_once_and_says_so(bare, capsys):
    main(["index", str(bare)])
    said = capsys.readouterr().out
    assert "index written" in said
    assert f"{bare / MANIFEST}: 48 preference records, written" in said
    main(["index", str(bare)])
    said = capsys.readouterr().out
    assert "index there" in said
    assert MANIFEST not in said


def test_a_tar_alone_gets_no_manifest(bare):
    main(["index", str(next(bare.glob("*.tar")))])
    assert list(bare.glob("*.index.jsonl"))
    assert not (bare / MANIFEST).exists()


@pytest.mark.parametrize("check", [["--check"], ["--check", "true"], ["--check=true"]])
def test_check_passes_sound_shards(check, bare, capsys):
    main(["index", str(bare)])
    for words in ([*check, str(bare)], [str(bare), *check]):
        capsys.readouterr()
        main(["index", *words])
        assert ": sound" in capsys.readouterr().out


def test_check_fails_changed_shards(bare, capsys):
    main(["index", str(bare)])
    path = next(bare.glob("*.tar"))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main(["index", str(bare), "--check"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error: 1 of " in said
    assert f"{path}: is not the tar of manifest.json" in said


def test_check_writes_nothing(bare, capsys):
    with pytest.raises(SystemExit):
        main(["index", str(bare), "--check"])
    assert "no checksum is known; run index without --check first" in capsys.readouterr().err
    assert {path.suffix for path in bare.iterdir()} == {".tar"}


def test_shards_that_are_not_there_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["index", "/nowhere"])
    assert "/nowhere: no such shard" in capsys.readouterr().err
