# SPDX-License-Identifier: Apache-2.0
"""What differs between the families of vision-language models, one file a family that needs special care.

A family without a file is an ordinary one: its pictures come out of ``get_image_features``, its positions
count real tokens.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from ixc_lightning.models.families.base import Family
from ixc_lightning.models.families.gemma3 import Gemma3
from ixc_lightning.models.families.internlm_xcomposer2 import InternLMXComposer2
from ixc_lightning.models.families.llava_onevision import LlavaOnevision
from ixc_lightning.models.families.mrope import Mrope
from ixc_lightning.models.families.smolvlm import Smolvlm

__all__ = ["Family", "family_of"]


def family_of(base: PreTrainedModel) -> Family:
    """The family of a base model of transformers, told by what the model can do wherever possible."""
    if hasattr(base, "get_rope_index"):
        return Mrope()
    special = {
        "gemma3": Gemma3,
        "idefics3": Smolvlm,
        "internlm_xcomposer2": InternLMXComposer2,
        "llava_onevision": LlavaOnevision,
        "smolvlm": Smolvlm,
    }
    return special.get(base.config.model_type, Family)()
