# SPDX-License-Identifier: Apache-2.0
"""The critic: what a state of a half-written response is worth, judged with the pictures in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from ixc_lightning.functional.packing import Trees, pack, predicting_places
from ixc_lightning.models.adapters import LoRA
from ixc_lightning.models.checkpointing import Checkpointing
from ixc_lightning.models.compiling import Compile
from ixc_lightning.models.packing import Sharing, prepare, read_trees
from ixc_lightning.models.quantisation import Quantisation
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import Prompts, Sequences


class Critic(nn.Module):
    """Values V(sₜ) = v · hₜ + b at every place of a sequence, in float32.

    It sees what the reward model sees: the pictures, the prompt, and the response so far.
    InternLM-XComposer2.5-Reward, §4.1 (arXiv 2501.12368): the critic is initialised from the reward model.
    Then v and b are the score head in units of normalised scores: v = w/σ, b = −μ/σ with the mean μ and
    standard deviation σ that the reward model stored. Where its pooling is a mean, the mean of these values
    over a sequence is the normalised score.

    Args:
        source: hub id or folder, of a reward model as a rule; of another model the head starts afresh.
        head: ``score`` starts the head from the source's score head, ``zero`` at zero.
        weights: ``pretrained`` loads them, ``random`` builds the architecture of the source's config afresh.
        freeze: roles that are not trained, of ``vision``, ``projector`` and ``language``.
        dtype: of the backbone's weights; the head is always float32.
        attention: attention implementation, by its name in transformers.
        gradient_checkpointing: recompute activations in the backward pass, for less memory: ``true`` in all
            layers, a number k in every k-th, ``selective`` all but matrix products and attention.
        liger: Liger's Triton kernels for norms, rotations and gated activations.
        compile: compile the decoder's layers: ``true``, a mode of ``torch.compile``, or ``aot_eager``.
        vision_patches_at_once: most patches that the vision tower encodes at a time, of whole pictures and
            clips; null for all of a batch together.
        frozen_tower: whether each rank of a model that FSDP2 shards keeps a frozen vision tower and projector
            ``whole``, or a part of them, ``sharded``, and gathers them to look at pictures.
        adapter: low-rank adapters to train in the place of the language model's own weights, beside the head.
        quantisation: of the decoder's linear layers, ``nf4`` for 4 bits.

    Raises:
        InputError: the source cannot be loaded.
    """

    def __init__(
        self,
        source: str,
        *,
        head: Literal["score", "zero"] = "score",
        weights: Literal["pretrained", "random"] = "pretrained",
        freeze: Sequence[str] = ("vision", "projector"),
        dtype: str = "float32",
        attention: str = "sdpa",
        gradient_checkpointing: Checkpointing = False,
        liger: bool = False,
        compile: Compile = False,
        vision_patches_at_once: int | None = None,
        frozen_tower: Literal["whole", "sharded"] = "whole",
        adapter: LoRA | None = None,
        quantisation: Quantisation | None = None,
    ) -> None:
        super().__init__()
        judge = RewardModel(
            source,
            weights=weights,
            freeze=freeze,
            dtype=dtype,
            attention=attention,
            gradient_checkpointing=gradient_checkpointing,
            liger=liger,
            compile=compile,
            vision_patches_at_once=vision_patches_at_once,
            frozen_tower=frozen_tower,
            adapter=adapter,
            quantisation=quantisation,
            sharing="off",  # of no use to a judge that never scores
        )
        self.backbone = judge.backbone
        self.value = nn.Linear(self.backbone.hidden_size, 1, dtype=torch.float32)
        is_zero = head == "zero"
        with torch.no_grad():
            self.value.weight.copy_(judge.score.weight / judge.score_std * (not is_zero))
            self.value.bias.copy_(-judge.score_mean / judge.score_std * (not is_zero))

    def prepare_sharing(self, sharing: Sharing) -> None:
        """Find out whether prompts can be read once for all their responses, if that is asked for.

        All ranks of a sharded critic call it together.
        """
        self.backbone.shares = prepare(self.backbone, sharing)

    def encode(self, prompts: Prompts) -> Visuals | None:
        """The pictures and clips of a batch, encoded once; None for a batch of text."""
        return self.backbone.encode(prompts)

    def forward(
        self, answers: Sequences | Trees, visuals: Visuals | None
    ) -> Float[Tensor, "B L"] | Float[Tensor, " N"]:
        """Value of the state behind each token: of what may follow the sequence up to and with it.

        The value of the state in which a token was sampled stands at the place *before* that token
        (``functional.sft.predicting_mask``). Values at padding mean nothing.

        Args:
            answers: prompts and responses, joined or as trees.
            visuals: the pictures of the joined sequences, or of the trees' prompts, encoded, in row order.

        Returns:
            For sequences the values at all places. For trees, whose prompts are read once, those of the
            states in which the N response tokens were sampled, all responses one after the other.

        Raises:
            ValueError: ``packing.share`` has not prepared the backbone for trees.
        """
        if isinstance(answers, Trees):
            packing = pack(answers)
            row = read_trees(self.backbone, answers, packing, visuals)[1]
            hidden = embedding(predicting_places(packing), row)
        else:
            hidden = self.backbone(answers.ids, answers.mask, answers.token_types, visuals)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value(hidden.float()).squeeze(-1)
