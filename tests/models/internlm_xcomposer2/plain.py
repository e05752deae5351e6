# SPDX-License-Identifier: Apache-2.0
"""The language model once more, in float64 and in plain tensor operations on the released, fused weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def random_weights(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the language model and its score head under their released names."""
    generator = torch.Generator().manual_seed(seed)
    width, inner, rank = config["hidden_size"], config["intermediate_size"], config["_tiny"]["plora_r"]
    size = width // config["num_attention_heads"]
    fused = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * size
    shapes = {"model.tok_embeddings.weight": (config["vocab_size"], width), "score.weight": (1, width)}
    linears = {"attention.wqkv": (fused, width), "attention.wo": (width, width)}
    linears |= {f"feed_forward.{name}": (inner, width) for name in ("w1", "w3")}
    linears |= {"feed_forward.w2": (width, inner)}
    for layer in range(config["num_hidden_layers"]):
        for name, (outputs, inputs) in linears.items():
            prefix = f"model.layers.{layer}.{name}"
            shapes[f"{prefix}.weight"] = (outputs, inputs)
            shapes[f"{prefix}.Plora_A.weight"] = (rank, inputs)
            shapes[f"{prefix}.Plora_B.weight"] = (outputs, rank)
    weights = {
        name: torch.randn(shape, generator=generator) * (0.6 if len(shape) == 1 else shape[1] ** -0.5)
        for name, shape in shapes.items()
    }
    norms = [
        f"model.layers.{n}.{kind}_norm"
        for n in range(config["num_hidden_layers"])
        for kind in ("attention", "ffn")
    ]
    for name in [*norms, "model.norm"]:
        weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
    return weights


def last_hidden(
    config: dict[str, Any], weights: dict[str, Tensor], embeddings: Tensor, image_mask: Tensor, mask: Tensor
) -> Tensor:
    """The states behind the final norm of rows padded on the right, in float64.

    The base of the rotary angles grows with the rows' length beyond ``max_position_embeddings``.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    heads, groups = (
        config["num_attention_heads"],
        config["num_attention_heads"] // config["num_key_value_heads"],
    )
    size = config["hidden_size"] // heads
    scale = config["_tiny"]["plora_alpha"] / config["_tiny"]["plora_r"]
    hidden = embeddings.double()
    rows, length, _ = hidden.shape
    base = float(config["rope_theta"])
    most, factor = config["max_position_embeddings"], config["rope_scaling"]["factor"]
    if length > most:
        base *= (factor * length / most - (factor - 1)) ** (size / (size - 2))
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x: Tensor, name: str) -> Tensor:
        return (
            x
            / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()
            * weights[f"{name}.weight"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        update = x @ weights[f"{name}.Plora_A.weight"].T @ weights[f"{name}.Plora_B.weight"].T
        return x @ weights[f"{name}.weight"].T + update * scale * image_mask[..., None]

    def rotate(x: Tensor) -> Tensor:
        halves = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat((halves.real, halves.imag), dim=-1)

    visible = torch.ones(length, length).tril().bool() & mask[:, None, :].bool()
    visible |= torch.eye(length).bool()  # padding sees itself
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        fused = linear(norm(hidden, f"{prefix}.attention_norm"), f"{prefix}.attention.wqkv")
        slots = fused.view(rows, length, config["num_key_value_heads"], groups + 2, size)
        mixed = []
        for head in range(heads):
            group, place = divmod(head, groups)
            query, key = rotate(slots[:, :, group, place]), rotate(slots[:, :, group, -2])
            scores = query @ key.transpose(1, 2) / size**0.5
            chance = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            mixed.append(chance @ slots[:, :, group, -1])
        hidden = hidden + linear(torch.cat(mixed, dim=-1), f"{prefix}.attention.wo")
        inner = norm(hidden, f"{prefix}.ffn_norm")
        gate, up = linear(inner, f"{prefix}.feed_forward.w1"), linear(inner, f"{prefix}.feed_forward.w3")
        hidden = hidden + linear(gate * torch.sigmoid(gate) * up, f"{prefix}.feed_forward.w2")
    return norm(hidden, "model.norm")
