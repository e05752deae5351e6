# SPDX-License-Identifier: Apache-2.0
"""InternLM-XComposer2.5 and its reward model, native in transformers 5.

Importing this package makes the model known to transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    PreTrainedTokenizerFast,
)

from ixc_lightning.models.internlm_xcomposer2.configuration import (
    InternLMXComposer2Config,
    InternLMXComposer2TextConfig,
)
from ixc_lightning.models.internlm_xcomposer2.image_processing import InternLMXComposer2ImageProcessor
from ixc_lightning.models.internlm_xcomposer2.language import InternLMXComposer2TextModel
from ixc_lightning.models.internlm_xcomposer2.modeling import (
    InternLMXComposer2ForConditionalGeneration,
    InternLMXComposer2Model,
)
from ixc_lightning.models.internlm_xcomposer2.processing import InternLMXComposer2Processor
from ixc_lightning.models.internlm_xcomposer2.video_processing import InternLMXComposer2VideoProcessor

__all__ = [
    "InternLMXComposer2Config",
    "InternLMXComposer2ForConditionalGeneration",
    "InternLMXComposer2ImageProcessor",
    "InternLMXComposer2Model",
    "InternLMXComposer2Processor",
    "InternLMXComposer2TextConfig",
    "InternLMXComposer2TextModel",
    "InternLMXComposer2VideoProcessor",
]

AutoConfig.register("internlm_xcomposer2", InternLMXComposer2Config)
AutoConfig.register("internlm_xcomposer2_text", InternLMXComposer2TextConfig)
AutoModel.register(InternLMXComposer2Config, InternLMXComposer2Model)
AutoModel.register(InternLMXComposer2TextConfig, InternLMXComposer2TextModel)
AutoModelForCausalLM.register(InternLMXComposer2Config, InternLMXComposer2ForConditionalGeneration)
AutoModelForImageTextToText.register(InternLMXComposer2Config, InternLMXComposer2ForConditionalGeneration)
AutoImageProcessor.register(
    InternLMXComposer2Config,
    # one class, whichever way to resize a caller prefers
    image_processor_classes=dict.fromkeys(("torchvision", "pil"), InternLMXComposer2ImageProcessor),
)
AutoVideoProcessor.register(InternLMXComposer2Config, InternLMXComposer2VideoProcessor)
AutoTokenizer.register(InternLMXComposer2Config, fast_tokenizer_class=PreTrainedTokenizerFast)
AutoProcessor.register(InternLMXComposer2Config, InternLMXComposer2Processor)
