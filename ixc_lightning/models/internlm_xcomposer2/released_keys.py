# SPDX-License-Identifier: Apache-2.0
"""The released checkpoints' names and layouts of weights, and ours: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from ixc_lightning.models.internlm_xcomposer2.configuration import (
    InternLMXComposer2Config,
    InternLMXComposer2TextConfig,
)

ADAPTER_RANKS = {"sft": 256, "dpo": 256, "web": 512}
"""Adapters of the released causal model; the modes ``write`` and ``web`` use them."""

_LINEARS = {"attention.wo": "self_attn.o", "feed_forward.w1": "mlp.gate"}
_LINEARS |= {"feed_forward.w3": "mlp.up", "feed_forward.w2": "mlp.down"}
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_VISION_LAYER = [
    f"{part}.{kind}"
    for part in (
        *(f"self_attn.{name}_proj" for name in "kvq"),
        "self_attn.out_proj",
        "layer_norm1",
        "mlp.fc1",
        "mlp.fc2",
        "layer_norm2",
    )
    for kind in ("weight", "bias")
]
_VISION = ["embeddings.class_embedding", "embeddings.patch_embedding.weight"]
_VISION += ["embeddings.position_embedding.weight"]
_VISION += [f"{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")]


class Entry(NamedTuple):
    """One tensor of a released checkpoint and the tensors that it is here.

    Attributes:
        released: its name in the release.
        native: the names here, of the base model (the language head and the score head have none to prefix).
        unpack: the released tensor to ours, in the order of ``native``.
        pack: ours to the released one; the exact inverse.
    """

    released: str
    native: tuple[str, ...]
    unpack: Callable[[Tensor], Sequence[Tensor]]
    pack: Callable[[Sequence[Tensor]], Tensor]


def entries(config: InternLMXComposer2Config, *, head: str) -> Iterator[Entry]:
    """Every tensor of the release, in its order, adapters included where the config has some.

    Args:
        config: our configuration.
        head: ``output`` for the causal model, ``score`` for the reward model.
    """
    yield _reshaped("plora_glb_GN", "multi_modal_projector.global_separator", axes=3)
    yield _reshaped("plora_sub_GN", "multi_modal_projector.row_separator", axes=4)
    yield _same("model.tok_embeddings.weight", "language_model.embed_tokens.weight")
    text = config.text_config
    for index in range(text.num_hidden_layers):
        yield from _layer(f"model.layers.{index}.", f"language_model.layers.{index}.", text)
    yield _same("model.norm.weight", "language_model.norm.weight")
    yield (
        _same("output.weight", "lm_head.weight")
        if head == "output"
        else _same("score.weight", "score.weight")
    )
    blocks = range(config.vision_config.num_hidden_layers)
    for name in _VISION + [f"encoder.layers.{block}.{part}" for block in blocks for part in _VISION_LAYER]:
        yield _same(f"vit.vision_tower.vision_model.{name}", f"vision_tower.{name}")
    for number, layer in (("0", "linear_1"), ("2", "linear_2")):
        for kind in ("weight", "bias"):
            yield _same(f"vision_proj.{number}.{kind}", f"multi_modal_projector.{layer}.{kind}")


def split_qkv(
    fused: Shaped[Tensor, "rows I"], text: InternLMXComposer2TextConfig
) -> tuple[Shaped[Tensor, "q I"], Shaped[Tensor, "k I"], Shaped[Tensor, "k I"]]:
    """The fused rows, ordered [key-value head][its query heads…, key, value][head_dim], as three matrices."""
    heads = _key_value_heads(text)
    groups = text.num_attention_heads // heads
    slots = fused.view(heads, groups + 2, text.head_dim, -1)
    query, key, value = slots[:, :groups], slots[:, groups], slots[:, groups + 1]
    return query.flatten(0, 2), key.flatten(0, 1), value.flatten(0, 1)


def join_qkv(parts: Sequence[Tensor], text: InternLMXComposer2TextConfig) -> Shaped[Tensor, "rows I"]:
    """The inverse of ``split_qkv``."""
    shape = (_key_value_heads(text), -1, text.head_dim, parts[0].shape[1])
    return torch.cat([part.view(shape) for part in parts], dim=1).flatten(0, 2)


def _layer(released: str, native: str, text: InternLMXComposer2TextConfig) -> Iterator[Entry]:
    fused = f"{released}attention.wqkv."
    yield Entry(
        f"{fused}weight",
        tuple(f"{native}self_attn.{name}_proj.weight" for name in "qkv"),
        lambda tensor: split_qkv(tensor, text),
        lambda parts: join_qkv(parts, text),
    )
    for theirs, ours in _updates(text):
        yield _same(f"{fused}{theirs}_A.weight", f"{native}self_attn.qkv_updates.{ours}.down.weight")
        yield Entry(
            f"{fused}{theirs}_B.weight",
            (f"{native}self_attn.qkv_updates.{ours}.up.weight",),
            lambda tensor: (torch.cat(split_qkv(tensor, text)),),
            lambda parts: join_qkv(parts[0].split(_qkv_rows(text)), text),
        )
    for theirs, ours in _LINEARS.items():
        yield _same(f"{released}{theirs}.weight", f"{native}{ours}_proj.weight")
        for update, name in _updates(text):
            for letter, half in (("A", "down"), ("B", "up")):
                yield _same(
                    f"{released}{theirs}.{update}_{letter}.weight",
                    f"{native}{ours}_updates.{name}.{half}.weight",
                )
    for theirs, ours in _NORMS.items():
        yield _same(f"{released}{theirs}.weight", f"{native}{ours}.weight")


def _updates(text: InternLMXComposer2TextConfig) -> list[tuple[str, str]]:
    names = text.adapter_ranks or {}
    return [("Plora", "plora"), *((f"lora_{name}", f"adapters.{name}") for name in names)]


def _qkv_rows(text: InternLMXComposer2TextConfig) -> list[int]:
    heads = _key_value_heads(text)
    return [count * text.head_dim for count in (text.num_attention_heads, heads, heads)]


def _key_value_heads(text: InternLMXComposer2TextConfig) -> int:
    heads = text.num_key_value_heads
    assert heads is not None  # the configuration fills it in
    return heads


def _same(released: str, native: str) -> Entry:
    return Entry(released, (native,), lambda tensor: (tensor,), lambda parts: parts[0])


def _reshaped(released: str, native: str, *, axes: int) -> Entry:
    return Entry(
        released,
        (native,),
        lambda tensor: (tensor.flatten(),),
        lambda parts: parts[0].view(*[1] * (axes - 1), -1),
    )
