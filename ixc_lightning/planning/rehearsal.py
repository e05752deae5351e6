# SPDX-License-Identifier: Apache-2.0
"""A forward and backward pass on tensors without data, which counts what a real one would keep and compute.

The network itself runs, so that families, adapters, checkpointing and autocast cost what they cost, and no
formula per layer can go out of date. ``torch.distributed._tools.MemTracker`` does the like, but is private
and cannot be asked about a part of a network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ixc_lightning.functional.logprobs import token_logprobs
from ixc_lightning.functional.sft import predict_tokens, sft_loss
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.quantisation import quantised_kinds

DEPTHS = (2, 4)
"""Decoder layers that are rehearsed; the layers of a decoder are alike, so the others cost the same."""
Loss = Literal["score", "logprobs", "sft"]


class Work(NamedTuple):
    """One forward pass of one GPU, and its backward pass.

    Attributes:
        rows: sequences.
        length: tokens of each, without padding.
        predicted: tokens of each whose logits are computed; 0 for scores and values.
        loss: what is made of the hidden states.
        learns: whether there is a backward pass.
        autocast: computes in bfloat16 over the weights' own dtype.
        is_sharded: gradients leave the GPU's own memory as soon as they are there.
        accumulates: gradients of earlier passes are there already.
    """

    rows: int
    length: int
    predicted: int = 0
    loss: Loss = "score"
    learns: bool = True
    autocast: bool = False
    is_sharded: bool = False
    accumulates: bool = False


class Cost(NamedTuple):
    """What a pass costs beside the weights.

    Attributes:
        peak: most bytes alive at once, gradients of weights included unless they were there before.
        kept: bytes alive between forward and backward pass.
        flops: multiplications and additions of matrix products, recomputation included, attention excluded.
        attention: those of attention, in which causal attention computes half of all products.
    """

    peak: float
    kept: float
    flops: float
    attention: float


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and are still alive, and the arithmetic.

    The arithmetic is that of ``torch.utils.flop_counter``, whose own mode keeps tensors of the backward pass
    alive that are otherwise gone.

    Attributes:
        now: bytes alive.
        peak: the most that were.
        flops: multiplications and additions outside attention.
        attention: those of attention, all products of queries and keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.attention = 0
        self._known: set[int] = set()

    def forget(self, tensor: Tensor) -> None:
        """Leave out a tensor that was there before."""
        self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            flops = count(*args, **(kwargs or {}), out_val=outputs)
            if "scaled_dot_product" in str(function):
                self.attention += flops
            else:
                self.flops += flops
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._meet(output.untyped_storage())
        return outputs

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.now -= size
        self._known.discard(key)


def cost_of(build: Callable[[], nn.Module], work: Work) -> Cost:
    """What a pass of a role costs.

    Args:
        build: makes the role on the meta device: a ``Backbone``, or a network that has one and a head.
        work: the pass.
    """
    role = build()
    count = len(backbone_of(role).decoder_layers())
    period = _period(backbone_of(role))
    depths = [depth * period for depth in DEPTHS]
    _without_4_bits(_cut(role, min(count, depths[1])))
    with FakeTensorMode(allow_non_fake_inputs=True):
        role.train(work.learns).to_empty(device="cpu")
        more = _rehearse(role, work)
        if count <= depths[1]:
            return more
        few = _rehearse(_cut(role, depths[0]), work)
    layers = (count - depths[0]) / (depths[1] - depths[0])
    return Cost(*(one + (two - one) * layers for one, two in zip(few, more, strict=True)))


def backbone_of(role: nn.Module) -> Backbone:
    """The role's backbone: a policy is one, a critic and a reward model have one."""
    found = role if isinstance(role, Backbone) else role.backbone
    assert isinstance(found, Backbone)
    return found


def _period(backbone: Backbone) -> int:
    """After how many layers the decoder's kinds, and those that are checkpointed, repeat."""
    layers = backbone.decoder_layers()
    types = getattr(backbone.config.get_text_config(), "layer_types", None) or [""] * len(layers)
    flags = [bool(getattr(layer, "gradient_checkpointing", False)) for layer in layers]
    kinds = list(zip(types, flags, strict=False))
    return next(p for p in range(1, len(kinds) + 1) if all(k == kinds[n % p] for n, k in enumerate(kinds)))


def _cut(role: nn.Module, depth: int) -> nn.Module:
    """The role with so many decoder layers."""
    layers = backbone_of(role).decoder_layers()
    for module in [*backbone_of(role).base.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.ModuleList) and len(child) == len(layers) and child[0] is layers[0]:
                setattr(module, name, nn.ModuleList(layers[:depth]))
    return role


def _rehearse(role: nn.Module, work: Work) -> Cost:
    role.zero_grad()
    trained = [weight for weight in role.parameters() if weight.requires_grad]
    for weight in trained:
        if work.is_sharded:
            weight.register_post_accumulate_grad_hook(_give_away)
        elif work.accumulates and work.learns:
            weight.grad = torch.zeros_like(weight)
    with Live() as live, torch.set_grad_enabled(work.learns):
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        for tensor in [*role.parameters(), *role.buffers(), *gradients]:
            live.forget(tensor)
        loss = _loss(role, backbone_of(role), work)
        kept = live.now
        if work.learns:
            loss.backward()
    return Cost(float(live.peak), float(kept), float(live.flops), live.attention / 2)


def _loss(role: nn.Module, backbone: Backbone, work: Work) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
        hidden = _hidden(backbone, work)
        if work.loss == "score":
            with torch.autocast("cpu", enabled=False):
                return hidden.float().sum()
        chosen = hidden[:, -work.predicted - 1 : -1].flatten(0, 1)
        targets = torch.zeros(len(chosen), dtype=torch.long)
        if work.loss == "sft":
            losses = predict_tokens(chosen, targets, backbone.logits).losses
            return sft_loss(losses, weights=torch.ones(len(chosen)))
        return token_logprobs(chosen, targets, backbone.logits).logprobs.sum()


def _hidden(backbone: Backbone, work: Work) -> Tensor:
    """The last hidden states; embeddings go in, since checks of ids would look at data that is not there."""
    base = backbone.base
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    mask = torch.ones(work.rows, work.length, dtype=torch.bool)
    inputs: dict[str, Any] = {"position_ids": backbone.family.positions(base, ids, mask, {}, {})}
    if "image_mask" in signature(base.forward).parameters:
        inputs["image_mask"] = mask  # the updates of image tokens are computed at all of them
    embedded = base.get_input_embeddings()(ids)
    return base(inputs_embeds=embedded, use_cache=False, **inputs).last_hidden_state


def _give_away(weight: Tensor) -> None:
    weight.grad = None


def _without_4_bits(role: nn.Module) -> None:
    """Put layers that unpack their weight for a moment where quantised ones are, which need data for that."""
    base = backbone_of(role).base
    for path, module in [*base.named_modules()]:
        if isinstance(module, quantised_kinds()):
            linear: Any = module
            unpacked = _Unpacked(linear.in_features, linear.out_features, linear.compute_dtype, linear.bias)
            base.set_submodule(path, unpacked)


class _Unpacked(nn.Module):
    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, bias: Tensor | None) -> None:
        super().__init__()
        self.shape, self.dtype = (outputs, inputs), dtype
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        result = _Product.apply(states.to(self.dtype), self.shape)
        return result if self.bias is None else result + self.bias.to(result.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ whose W is unpacked for the forward pass and again for the backward pass; nothing is kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return states @ states.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ gradients[0].new_empty(ctx.shape), None
