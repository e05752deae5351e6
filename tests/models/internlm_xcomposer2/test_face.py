# SPDX-License-Identifier: Apache-2.0
"""What the rest of the package does with a model, beyond the tests of all families: packing, LoRA, export."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from ixc_lightning.export import export_folder
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import Sequences
from tests.families import collate, sample

TOLERANCE = 1e-5
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def family(tiny):
    return tiny("internlm_xcomposer2")


def test_two_responses_behind_one_prompt_equal_two_sequences(family):
    prompt = sample(family.processor, "images", seed=3)
    ids, count = prompt["input_ids"], prompt["input_ids"].shape[1]
    chosen, rejected = torch.tensor([[50, 61, 72]]), torch.tensor([[80, 91]])
    packed = torch.cat((ids, chosen, rejected), dim=1)
    positions = torch.cat((torch.arange(count + 3), count + torch.arange(2)))[None]
    mask = torch.ones(count + 5, count + 5).tril().bool()
    mask[count + 3 :, count : count + 3] = False
    backbone = family.backbone
    with torch.no_grad():
        visuals = backbone.encode(collate([prompt]))
        together = backbone.base(
            input_ids=packed,
            attention_mask=mask[None, None],
            position_ids=positions,
            mm_encoder_outputs=visuals.encoder_outputs(),
            use_cache=False,
        ).last_hidden_state
        for response, place in ((chosen, slice(count, count + 3)), (rejected, slice(count + 3, None))):
            row = torch.cat((ids, response), dim=1)
            alone = backbone(row, torch.ones_like(row).bool(), {}, visuals)
            assert (together[:, place] - alone[:, count:]).abs().max() < TOLERANCE
            assert (together[:, :count] - alone[:, :count]).abs().max() < TOLERANCE


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21.2
def test_lora_finds_its_layers_and_leaves_the_model_as_it_was_at_first(family):
    network = AutoModelForImageTextToText.from_pretrained(family.folder).eval()
    batch = sample(family.processor, "image", seed=1)
    with torch.no_grad():
        before = network(**batch).logits
    adapted = get_peft_model(
        network, LoraConfig(r=4, target_modules=LINEARS, exclude_modules=".*vision_tower.*")
    )
    with torch.no_grad():
        assert torch.equal(adapted(**batch).logits, before)
    adapted(**batch).logits.square().mean().backward()
    gained = [name for name, p in adapted.named_parameters() if p.grad is not None]
    assert len(gained) == 2 * 2 * len(LINEARS)
    assert all("lora_" in name for name in gained)


def test_an_exported_reward_model_has_its_processor_and_its_scores(family, tmp_path):
    model = RewardModel(family.folder, pooling="last").eval()
    export_folder(model, family.folder, tmp_path / "export")
    again = RewardModel.from_pretrained(tmp_path / "export")
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    assert processor.chat_template == family.processor.chat_template
    assert processor.image_processor.to_dict() == family.processor.image_processor.to_dict()
    batch = collate([sample(processor, "both", seed=2)], side="right")
    sequences = Sequences(batch.ids, batch.mask, batch.mask, {})
    with torch.no_grad():
        scores = [one(sequences, one.encode(batch)) for one in (model, again)]
    assert torch.equal(*scores)
