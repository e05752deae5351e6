# SPDX-License-Identifier: Apache-2.0
"""The reward model: any vision-language model, pooled, and a linear score head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import cached_file

from ixc_lightning.functional.masking import last_index, last_pool, mean_pool, token_pool
from ixc_lightning.functional.packing import (
    Packing,
    Trees,
    last_places,
    mean_of_trees,
    pack,
    token_places,
)
from ixc_lightning.models.adapter_files import EXTRA_FILE
from ixc_lightning.models.adapters import LoRA
from ixc_lightning.models.backbone import Backbone, Visuals
from ixc_lightning.models.checkpointing import Checkpointing
from ixc_lightning.models.compiling import Compile
from ixc_lightning.models.internlm_xcomposer2.release import is_released, reward_head, reward_settings
from ixc_lightning.models.loading import late_weights_of
from ixc_lightning.models.packing import Sharing, joined, prepare, read_trees
from ixc_lightning.models.quantisation import Quantisation
from ixc_lightning.types import InputError, Prompts, Sequences

Pooling = Literal["mean", "last", "token"]

SETTINGS_FILE = "reward_model.json"
HEAD_KEY = "score.weight"


class RewardModel(nn.Module):
    """Scores a response to a prompt with its pictures: r(x, y) = w · pool(h), in float32.

    h are the last hidden states of the language model. InternLM-XComposer2.5-Reward, §3 (arXiv 2501.12368):
    the last linear layer is replaced by a score head over the average hidden state of all tokens, and the
    vision tower and the projector are frozen.

    ``source`` may be a model that was never a reward model, whose head then starts as w ~ N(0, 1/(d+1))
    (standard deviation 1/√(d+1), Huang et al. 2024, arXiv 2403.17031, detail 12), or a folder that
    ``save_pretrained`` wrote, whose head, pooling and statistics are taken over.

    Args:
        source: hub id or folder.
        pooling: ``mean`` over all real tokens, the ``last`` real token, or ``token``, the last occurrence of
            ``reward_token_id``. Null means what the source was trained with, and ``mean`` for a new head.
        reward_token_id: the token that ``pooling: token`` reads. With ``pooling: last`` every sequence must
            end with it, if it is given.
        weights: ``pretrained`` loads them, ``random`` builds the architecture of the source's config afresh.
        freeze: roles that are not trained, of ``vision``, ``projector`` and ``language``.
        dtype: of the backbone's weights; the head is always float32.
        attention: ``sdpa``, ``eager``, ``flash_attention_2`` or another name that transformers knows.
        gradient_checkpointing: recompute activations in the backward pass, for less memory: ``true`` in all
            layers, a number k in every k-th, ``selective`` all but matrix products and attention.
        liger: Liger's Triton kernels for norms, rotations and gated activations.
        compile: compile the decoder's layers: ``true``, a mode of ``torch.compile``, or ``aot_eager``.
        vision_patches_at_once: most patches that the vision tower encodes at a time, of whole pictures and
            clips; null for all of a batch together.
        frozen_tower: whether each rank of a model that FSDP2 shards keeps a frozen vision tower and projector
            ``whole``, or a part of them, ``sharded``, and gathers them to look at pictures.
        adapter: low-rank adapters to train in the place of the language model's own weights, beside the head.
        quantisation: of the decoder's linear layers, ``nf4`` for 4 bits; the language model's own weights are
            not trained then.
        sharing: ``auto`` reads a prompt with several responses once for all of them, where the network can do
            that, and logs why it cannot otherwise; the scores are the same. ``off`` reads it with each.

    Raises:
        InputError: the source cannot be loaded, or was trained with another pooling.
    """

    score_mean: Tensor
    score_std: Tensor

    def __init__(
        self,
        source: str,
        *,
        pooling: Pooling | None = None,
        reward_token_id: int | None = None,
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
        sharing: Sharing = "auto",
    ) -> None:
        super().__init__()
        saved = _saved_settings(source) if weights == "pretrained" else {}
        if reward_token_id is None:
            reward_token_id = saved.get("reward_token_id")
        _check_pooling(source, saved, pooling, reward_token_id)
        self.pooling: Pooling = pooling or saved.get("pooling", "mean")
        self.reward_token_id = reward_token_id
        self.backbone = Backbone(
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
        )
        self.sharing, self.shares = sharing, False
        if late_weights_of(self.backbone.model) is None:
            self.prepare_sharing()
        self.score = nn.Linear(self.backbone.hidden_size, 1, bias=False, dtype=torch.float32)
        self.register_buffer("score_mean", torch.tensor(saved.get("score_mean", 0.0)))
        self.register_buffer("score_std", torch.tensor(saved.get("score_std", 1.0)))
        if saved:
            self.score.weight.data.copy_(_saved_head(source))
        else:
            nn.init.normal_(self.score.weight, std=(self.backbone.hidden_size + 1) ** -0.5)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        attention: str = "sdpa",
        quantisation: Quantisation | None = None,
        sharing: Sharing = "auto",
    ) -> RewardModel:
        """A trained reward model with its head, pooling and statistics, in evaluation mode, ready to score.

        Args:
            folder: a folder that ``save_pretrained`` or ``export`` wrote, or a hub id.
            dtype: of the backbone's weights; the head is always float32.
            attention: attention implementation, by its name in transformers.
            quantisation: of the decoder's linear layers; adapters that were saved apart bring that of the
                weights that they were trained on.
            sharing: whether a prompt with several responses is read once for all of them, where it can be.

        Raises:
            InputError: the folder is not one that ``save_pretrained`` wrote.
        """
        if not _saved_settings(str(folder)):
            raise InputError(
                f"{folder} holds no {SETTINGS_FILE}, so it is not a reward model; "
                "python -m ixc_lightning export CHECKPOINT FOLDER writes one"
            )
        return cls(
            str(folder), dtype=dtype, attention=attention, quantisation=quantisation, sharing=sharing
        ).eval()

    def prepare_sharing(self) -> None:
        """Find out whether prompts can be read once for all their responses, if that is asked for.

        It is called when the model is built. Where weights come later, call it when they are there; all ranks
        of a sharded model call it together.
        """
        self.shares = prepare(self.backbone, self.sharing)

    def encode(self, prompts: Prompts) -> Visuals | None:
        """The pictures and clips of a batch, encoded once for all; None for a batch of text."""
        return self.backbone.encode(prompts)

    def forward(self, answers: Sequences | Trees, visuals: Visuals | None) -> Float[Tensor, " R"]:
        """Scores of the responses, unbounded and in float32; higher is better.

        Args:
            answers: prompts and responses, joined or as trees. A prompt of a tree is read once for all its
                responses if the model ``shares``.
            visuals: the pictures of the joined sequences, or of the trees' prompts, encoded, in row order.

        Raises:
            ValueError: a row without tokens, or without the reward token where it is read; or trees that are
                none.
        """
        if isinstance(answers, Trees) and not self.shares:
            answers, visuals = joined(answers, visuals)
        if isinstance(answers, Trees):
            packing = pack(answers)
            ids, hidden = read_trees(self.backbone, answers, packing, visuals)
        else:
            hidden = self.backbone(answers.ids, answers.mask, answers.token_types, visuals)
        with torch.autocast(hidden.device.type, enabled=False):
            if isinstance(answers, Trees):
                pooled = self._pool_trees(ids, hidden, packing)
            else:
                pooled = self._pool(hidden, answers)
            return self.score(pooled).squeeze(-1)

    def normalise(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scores with mean 0 and standard deviation 1 on the data that the statistics were taken from."""
        return (scores - self.score_mean) / self.score_std

    @torch.no_grad()
    def store_statistics(self, mean: Tensor | float, std: Tensor | float) -> None:
        """Remember mean and standard deviation of the scores on reference data; they are saved as well."""
        self.score_mean.fill_(mean)
        self.score_std.fill_(std)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder.

        It holds the backbone as transformers writes it, the head as ``score.weight`` in the same safetensors
        files, and pooling and statistics in ``reward_model.json``.
        """
        self.backbone.save_pretrained(folder, extra={HEAD_KEY: self.score.weight.detach()})
        self.save_settings(folder)

    def save_settings(self, folder: str | Path) -> None:
        """Write ``reward_model.json`` alone: pooling, reward token, and the statistics of the scores."""
        settings = {
            "format": 1,
            "pooling": self.pooling,
            "reward_token_id": self.reward_token_id,
            "score_mean": self.score_mean.item(),
            "score_std": self.score_std.item(),
        }
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def _pool(self, hidden: Float[Tensor, "B L D"], sequences: Sequences) -> Float[Tensor, "B D"]:
        if self.pooling == "mean":
            return mean_pool(hidden, sequences.mask)
        if self.pooling == "last":
            last = last_index(sequences.mask)
            self._check_last(sequences.ids.gather(1, last[:, None]).squeeze(1))
            return last_pool(hidden, sequences.mask)
        assert self.reward_token_id is not None  # checked when the model was built
        return token_pool(hidden, sequences.mask, sequences.ids, token_id=self.reward_token_id)

    def _pool_trees(
        self, ids: Int[Tensor, " L"], hidden: Float[Tensor, "L D"], packing: Packing
    ) -> Float[Tensor, "R D"]:
        if self.pooling == "mean":
            return mean_of_trees(hidden, packing)
        if self.pooling == "last":
            places = last_places(packing)
            self._check_last(ids[places])
        else:
            assert self.reward_token_id is not None  # checked when the model was built
            places = token_places(ids, packing, token_id=self.reward_token_id)
        return hidden[places].float()

    def _check_last(self, ids: Int[Tensor, " R"]) -> None:
        """Raise where a response does not end with the reward token that the head was trained to read."""
        if self.reward_token_id is not None and (ids != self.reward_token_id).any():
            raise ValueError(
                f"a sequence does not end with the reward token {self.reward_token_id}, whose state is "
                "scored: give the datamodule the response_suffix that the model was trained with"
            )


def _saved_settings(source: str) -> dict[str, Any]:
    path = _find(source, SETTINGS_FILE)
    return json.loads(Path(path).read_text()) if path else reward_settings(source)


def _saved_head(source: str) -> Tensor:
    """The head's weight, wherever its safetensors file is.

    Raises:
        InputError: the files do not hold it.
    """
    if is_released(source):
        return reward_head(source)
    index = _find(source, "model.safetensors.index.json")
    name = json.loads(Path(index).read_text())["weight_map"].get(HEAD_KEY) if index else "model.safetensors"
    path = (_find(source, name) if name else None) or _find(source, EXTRA_FILE)
    if path:
        with safe_open(path, "pt") as tensors:
            if HEAD_KEY in set(tensors.keys()):
                return tensors.get_tensor(HEAD_KEY)
    raise InputError(
        f"{source} holds {SETTINGS_FILE} but no tensor {HEAD_KEY}: its weights are not those of a reward "
        "model; export it again"
    )


def _find(source: str, name: str) -> str | None:
    """Local path of a file of a hub id or folder; None where it has no such file."""
    try:
        return cached_file(str(Path(source).expanduser()), name)
    except OSError:
        return None


def _check_pooling(
    source: str, saved: dict[str, Any], pooling: Pooling | None, reward_token_id: int | None
) -> None:
    if saved and pooling not in (None, saved["pooling"]):
        raise InputError(
            f"{source} was trained with pooling: {saved['pooling']}, so its head means nothing under "
            f"pooling: {pooling}; leave pooling out"
        )
    if pooling == "token" and reward_token_id is None:
        raise InputError(
            "pooling: token needs reward_token_id, the id of the token whose hidden state is scored"
        )
