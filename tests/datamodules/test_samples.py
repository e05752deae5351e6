# SPDX-License-Identifier: Apache-2.0
"""Samples come back as they were written, so that copying shards gives the same bytes."""

import pytest

from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import write_shards
from ixc_lightning.types import InputError
from tests.datamodules.broken import write_tar
from tests.datamodules.test_contrast import record


@pytest.mark.parametrize("kind", ["instruction", "preference", "prompt"])
def test_a_copy_of_shards_has_their_bytes(kind, digits, tmp_path):
    shards = SampleShards(digits / kind / "heldout", kind=kind)
    write_shards(map(shards.sample, range(len(shards))), tmp_path / "copy", kind=kind)
    for path in (digits / kind / "heldout").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def test_without_media_a_sample_is_its_json(digits):
    shards = SampleShards(digits / "instruction/heldout", kind="instruction")
    whole, bare = shards.sample(1), shards.sample(1, media=False)
    assert (bare.key, bare.record, bare.media) == (whole.key, whole.record, {})
    assert whole.media


def test_a_bad_record_is_named(tmp_path):
    write_tar(tmp_path / "set.tar", [("a.json", record(0, ""))])
    with pytest.raises(InputError, match=r"set\.tar, sample 'a', messages\[1\]\.content: is empty"):
        SampleShards(tmp_path / "set.tar", kind="instruction").sample(0)
