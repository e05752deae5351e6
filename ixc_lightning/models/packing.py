# SPDX-License-Identifier: Apache-2.0
"""Reading prompts once for all their responses, by networks that can."""

from __future__ import annotations

import logging
from inspect import signature
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ixc_lightning.functional.masking import join
from ixc_lightning.functional.packing import Packing, Trees, branch_positions, in_a_row, pack
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.families import Family
from ixc_lightning.models.shared_attention import NAME, Plan
from ixc_lightning.models.shared_inputs import SharedPrefix
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import Prompts, Responses, Sequences

Sharing = Literal["auto", "off"]
LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Most difference in the check, relative to the size of the states; that of a wrong way is near 1."""

logger = logging.getLogger(__name__)


def read_trees(
    backbone: Backbone, trees: Trees, packing: Packing, visuals: Visuals | None
) -> tuple[Int[Tensor, " L"], Float[Tensor, "L D"]]:
    """Token ids and last hidden states of a row of trees: those of the prompts joined with their responses.

    Args:
        backbone: one that ``share`` has prepared.
        trees: prompts with their responses.
        packing: of these trees.
        visuals: the encoded pictures of exactly these prompts, or None for text.

    Raises:
        ValueError: ``share`` has not prepared the backbone, or found that it cannot do this.
    """
    if backbone.config.get_text_config()._attn_implementation != NAME:
        raise ValueError("this backbone does not know about trees: call share(backbone) first")
    prompts, responses = trees.prompts, trees.responses
    ids = in_a_row(packing, trees, prompts.ids, responses.ids)
    types = {
        name: in_a_row(packing, trees, value, torch.zeros_like(responses.ids))
        for name, value in prompts.token_types.items()
    }
    grids = {} if visuals is None else visuals.grids
    positions = backbone.family.positions(
        backbone.base, prompts.ids, prompts.mask, prompts.token_types, grids
    )
    positions = in_a_row(packing, trees, positions, branch_positions(trees, positions))
    shared = SharedPrefix(positions, Plan(packing, backbone.family.blocks(types)))
    return ids[0], backbone(ids, torch.ones_like(ids, dtype=torch.bool), types, visuals, shared=shared)[0]


def joined(trees: Trees, visuals: Visuals | None) -> tuple[Sequences, Visuals | None]:
    """The trees as sequences that share nothing, and their pictures, one entry a response.

    Args:
        trees: prompts with their responses.
        visuals: the encoded pictures of the prompts.
    """
    if visuals is not None:
        visuals = visuals.select(trees.prompt_index)
    return join(take_rows(trees.prompts, trees.prompt_index), trees.responses), visuals


def prepare(backbone: Backbone, sharing: Sharing) -> bool:
    """Whether prompts are to be read once for all their responses: ``share``, if that is asked for.

    The log says why it cannot be.
    """
    reason = share(backbone) if sharing == "auto" else None
    if reason:
        logger.warning("prompts are read once for each response: %s", reason)
    return sharing == "auto" and reason is None


def share(backbone: Backbone) -> str | None:
    """Prepare a backbone for ``read_trees``, unless it cannot do that.

    What a network is must not forbid it, and a row of two small trees must give the states that sequences
    apart give. Sequences go the way of ``sdpa`` as before.

    Returns:
        Why it cannot, or None if it can now.
    """
    reason = _obstacle(backbone) or _use(backbone, NAME) or _difference(backbone)
    if reason and backbone.config.get_text_config()._attn_implementation == NAME:
        _use(backbone, "sdpa")
    return reason


def _obstacle(backbone: Backbone) -> str | None:
    """What a network is that shares nothing."""
    config = backbone.config.get_text_config()
    name = type(backbone.base).__name__
    known = signature(backbone.base.forward).parameters
    is_two_way = "token_type_ids" in known and type(backbone.family).blocks is Family.blocks
    kinds = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if any(parameter.is_meta for parameter in backbone.parameters()):
        return "the weights are not there yet"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"attention is {config._attn_implementation}, and it takes sdpa"
    if backbone.config.is_encoder_decoder:
        return f"{name} has an encoder"
    if kinds:
        return f"{name} has layers of {', '.join(sorted(kinds))}"
    if is_two_way or getattr(config, "use_bidirectional_attention", None):
        return f"the tokens of a picture may see each other in {name}"
    return None


def _use(backbone: Backbone, attention: str) -> str | None:
    """Have the language model attend by that function; say what prevents it."""
    language = [part for part in backbone.role_modules()["language"] if isinstance(part, PreTrainedModel)]
    for network in language or [backbone.base]:
        network.set_attn_implementation(attention)
        if network.config._attn_implementation != attention:
            return f"the attention of {type(network).__name__} cannot be chosen"
    return None


@torch.no_grad()
def _difference(backbone: Backbone) -> str | None:
    """How two small trees, read in a row and apart, give different states, if they do."""
    device, is_training = next(backbone.base.parameters()).device, backbone.training
    trees = small_trees(backbone.config, device)
    backbone.eval()
    sequences, packing = join(take_rows(trees.prompts, trees.prompt_index), trees.responses), pack(trees)
    try:
        apart = backbone(sequences.ids, sequences.mask, {}, None)[sequences.mask]
        row = read_trees(backbone, trees, packing, None)[1]
    except (TypeError, ValueError, RuntimeError) as error:  # whatever a network says that was not made for it
        return f"{type(backbone.base).__name__} cannot read a row of trees: {error}"
    finally:
        backbone.train(is_training)
    segments = row.split([packing.lengths[segment] for segment in packing.order])
    where = dict(zip(packing.order, segments, strict=True))
    row = torch.cat([where[segment] for members in packing.members for segment in members])
    return difference(row, apart, "a row of trees")


def difference(found: Float[Tensor, "N D"], wanted: Float[Tensor, "N D"], what: str) -> str | None:
    """How far some states are from those of sequences apart, if that is more than rounding."""
    distance = ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()
    if not distance <= TOLERANCE[wanted.dtype]:
        return f"{what} gives other states than sequences apart, by {distance:.1e} of their size"
    return None


def small_trees(config: PretrainedConfig, device: torch.device) -> Trees:
    """Two trees with three branches between them, of ordinary tokens, all different."""
    parts = [*vars(config).items(), *vars(config.get_text_config()).items()]
    special = {value for name, value in parts if name.endswith("_token_id") and isinstance(value, int)}
    ordinary = [token for token in range(config.get_text_config().vocab_size) if token not in special]
    tokens = torch.tensor([ordinary[n * len(ordinary) // 16] for n in range(16)], device=device)
    lengths = torch.tensor([3, 5], device=device), torch.tensor([4, 2, 2], device=device)
    masks = [torch.arange(int(length.max()), device=device) < length[:, None] for length in lengths]
    prompts, responses = (
        torch.zeros_like(mask, dtype=torch.long).masked_scatter(mask, part)
        for mask, part in zip(masks, tokens.split([8, 8]), strict=True)
    )
    index = torch.tensor([0, 1, 0], device=device)
    return Trees(Prompts(prompts, masks[0], {}, {}), Responses(responses, masks[1]), index)
