# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates of linear layers: on image tokens (PLoRA), and on all tokens (the modes' adapters)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, is_grad_enabled, nn

from ixc_lightning.models.internlm_xcomposer2.configuration import (
    ADAPTERS_OF_MODE,
    InternLMXComposer2TextConfig,
)


class LowRankUpdate(nn.Module):
    """x ↦ scale · B A dropout(x), with A: in → rank and B: rank → out."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, hidden: Float[Tensor, "*L I"]) -> Float[Tensor, "*L O"]:
        """The update at every token."""
        return self.up(self.down(self.dropout(hidden))) * self.scale


class LinearUpdates(nn.Module):
    """What is added to the output of one linear layer.

    Partial LoRA, InternLM-XComposer2 §3.2 (arXiv 2401.16420): on image tokens B A x · α/r is added. The
    layers query, key and value share one A, so the three count as one layer here.

    Args:
        in_features: inputs of the layer.
        out_features: its outputs.
        config: ranks, scale and dropout.
    """

    def __init__(self, in_features: int, out_features: int, config: InternLMXComposer2TextConfig) -> None:
        super().__init__()
        self.plora = LowRankUpdate(
            in_features,
            out_features,
            config.plora_rank,
            scale=config.plora_alpha / config.plora_rank,
            dropout=config.plora_dropout,
        )
        self.adapters = nn.ModuleDict(
            {
                name: LowRankUpdate(in_features, out_features, rank)
                for name, rank in (config.adapter_ranks or {}).items()
            }
        )

    def forward(
        self, hidden: Float[Tensor, "B L I"], image_mask: Float[Tensor, "B L 1"] | None, mode: str
    ) -> Float[Tensor, ...]:
        """The sum of the updates, in a shape that broadcasts to the layer's output.

        Args:
            hidden: the layer's input.
            image_mask: 1 at image tokens, else 0; None where the batch has no image at all.
            mode: one of ``ADAPTERS_OF_MODE``.
        """
        if image_mask is not None:
            update = self.plora(hidden) * image_mask
        elif is_grad_enabled():
            # times zero: gradients are then zero instead of absent, and all ranks reduce the same tensors
            update = self.plora(hidden[:, :1]) * 0
        else:
            update = hidden.new_zeros(())
        for name in ADAPTERS_OF_MODE[mode]:
            update = update + self.adapters[name](hidden)
        return update
