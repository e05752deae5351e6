# SPDX-License-Identifier: Apache-2.0
"""The command that converts the released InternLM-XComposer2.5, and models trained from it back."""

from __future__ import annotations

from typing import Literal

BYTES_PER_GB = 10**9


def convert_checkpoint(
    source: str,
    folder: str,
    *,
    adapters: Literal["keep", "ignore"] = "ignore",
    max_shard_gb: float = 2.0,
) -> None:
    """Convert a downloaded InternLM-XComposer2.5 for use here, or an exported one back to its layout.

    Memory stays near the size of one written file, whatever the size of the model.

    Args:
        source: the downloaded folder, or one that ``export`` wrote.
        folder: the folder to write.
        adapters: keep or ignore the adapters of the released causal model's modes "write" and "web".
        max_shard_gb: largest size of a written file, in gigabytes.
    """
    from ixc_lightning.models.internlm_xcomposer2.conversion import convert_folder

    path = convert_folder(source, folder, adapters=adapters, shard_bytes=int(max_shard_gb * BYTES_PER_GB))
    print(f"wrote {path}")
