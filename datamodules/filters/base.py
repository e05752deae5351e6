# SPDX-License-Identifier: Apache-2.0
"""What a filter is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import Record


class Filter(ABC):
    """A rule over records; name yours by ``class_path`` in a recipe.

    Records come in the order of the shards, so a filter may remember what it saw, as long as it gives the
    same answer when it is asked for a record again.

    Attributes:
        needs_media: whether ``keep`` looks at ``Record.media``. Without it, ``media`` is empty, and a pass
            over a large data set reads the texts alone.
    """

    needs_media: ClassVar[bool] = False

    @abstractmethod
    def keep(self, record: Record, encoder: ChatEncoder) -> bool:
        """Whether the record stays in the training data."""

    def prepare(self, encoder: ChatEncoder) -> None:  # noqa: B027 (most filters need none)
        """Get ready before the first record, for example by reading other data.

        Raises:
            InputError: it cannot; unlike that of ``keep``, it always ends the run.
        """

    @property
    def details(self) -> dict[str, int]:
        """How many records were dropped for each reason, where a filter has several."""
        return {}
