# SPDX-License-Identifier: Apache-2.0
"""Samples of shards as they lie there, to be written into other shards."""

from __future__ import annotations

from ixc_lightning.datamodules.record_checks import Place, load_json
from ixc_lightning.datamodules.records import FIELDS
from ixc_lightning.datamodules.shard_writer import Sample
from ixc_lightning.datamodules.shards import ShardDataset


class SampleShards(ShardDataset):
    """A ``ShardDataset`` that also gives its samples as ``write_shards`` takes them.

    ``Record``, which training reads, has lost the ``id``, and how its texts were written.
    """

    def sample(self, index: int, *, media: bool = True) -> Sample:
        """Return the sample of record ``index``: its JSON, and the bytes of its media as they were.

        Args:
            index: number of the record.
            media: read the media too; without them ``Sample.media`` is empty.

        Raises:
            InputError: as ``ShardDataset.record``.
        """
        record = self.record(index, media=media)
        shard, entry = self._find(index)
        raw = load_json(self._read(shard, entry, "json"), Place(record.shard, record.key), FIELDS)
        return Sample(record.key, raw, record.media)
