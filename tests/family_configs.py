# SPDX-License-Identifier: Apache-2.0
"""The tiny configs and processors of ``tests.families``, in which everything must fit."""

from __future__ import annotations

from collections.abc import Callable

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ixc_lightning.models import internlm_xcomposer2 as ixc
from ixc_lightning.models.internlm_xcomposer2.processing import CHAT_TEMPLATE

PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # activations of order one at width 64, so that errors cannot hide
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def _tokenizer(
    image: str, video: str, named: dict[str, str] | None = None
) -> tuple[tf.PreTrainedTokenizerFast, str]:
    """A byte-level BPE with the family's tokens, and a chat template that writes them."""
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", *(named or {}).values()]
    special += ["<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>"]
    special += [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(dict.fromkeys(special)),
    )
    tokenizer.train_from_iterator(["word 1 word 23 word 45 seconds Frame1: frames"], trainer)
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
        model_specific_special_tokens=named or {},
    ), template


def _text(tokenizer: tf.PreTrainedTokenizerFast, model_type: str, **extra: object) -> dict[str, object]:
    return {"model_type": model_type, "vocab_size": len(tokenizer), **TEXT, **extra}


def _qwen_vl(family: str) -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    new = family == "qwen3_vl"
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    wrapped = (
        f"<|vision_start|>{token}<|vision_end|>" for token in named.values()
    )  # else two pictures read as one
    tokenizer, template = _tokenizer(*wrapped, named=named)
    token = tokenizer.convert_tokens_to_ids
    patch, prefix = (16, "Qwen3VL") if new else (14, "Qwen2_5_VL")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = {
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 2,
        "intermediate_size": 48,
        "patch_size": patch,
        "out_hidden_size": 64,
    }
    if new:
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
        text = _text(
            tokenizer, "qwen3_vl_text", head_dim=16, rope_parameters={**rope, "mrope_interleaved": True}
        )
    else:
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        text = _text(tokenizer, "qwen2_5_vl_text", rope_parameters=rope)
    config = getattr(tf, f"{prefix}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    sizes = {"size": {"shortest_edge": 56**2, "longest_edge": 112**2}, "patch_size": patch, **PIXELS}
    video = tf.Qwen3VLVideoProcessor if new else tf.Qwen2VLVideoProcessor
    clip = {
        **sizes,
        "cap_pixels_per_frame": False,
        "size": {"shortest_edge": 56**2, "longest_edge": 8 * 64**2},
    }  # areas; Qwen 3 counts all frames
    return config, getattr(tf, f"{prefix}Processor")(
        image_processor=tf.Qwen2VLImageProcessor(**sizes),
        video_processor=video(**clip),
        tokenizer=tokenizer,
        chat_template=template,
    )


def _internvl() -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer, template = _tokenizer("<IMG_CONTEXT>", "<video>", named)
    config = tf.InternVLConfig(
        vision_config={**SIGLIP, "layer_scale_init_value": 1.0, "initializer_range": 0.2},
        text_config=_text(tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    pixels = {"size": {"height": 56, "width": 56}, **PIXELS}
    return config, tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(
            crop_to_patches=True, min_patches=1, max_patches=3, **pixels
        ),
        video_processor=tf.InternVLVideoProcessor(do_sample_frames=False, **pixels),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template,
    )


def _llava_onevision() -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    tokenizer, template = _tokenizer(
        "<image>", "<video>", {"image_token": "<image>", "video_token": "<video>"}
    )
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = tf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **SIGLIP},
        text_config=_text(tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full",
    )
    pixels = {"size": {"height": 56, "width": 56}, **PIXELS}
    return config, tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints, **pixels),
        video_processor=tf.LlavaOnevisionVideoProcessor(do_sample_frames=False, **pixels),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def _smolvlm() -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    tokenizer, template = _tokenizer(
        "<image>", "<video>", {"image_token": "<image>", "video_token": "<video>"}
    )
    config = tf.SmolVLMConfig(
        vision_config={**SIGLIP, "initializer_range": 0.2},
        text_config=_text(tokenizer, "llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}, **PIXELS}
    clip = {**pixels, "size": {"longest_edge": 56}, "do_sample_frames": False}
    return config, tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(**pixels),
        video_processor=tf.SmolVLMVideoProcessor(**clip),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template,
    )


def _gemma3() -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer, template = _tokenizer("<start_of_image>", "<video>", named)
    config = tf.Gemma3Config(
        text_config=_text(
            tokenizer,
            "gemma3_text",
            head_dim=16,
            sliding_window=8,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config={"vision_use_head": False, **SIGLIP},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    return config, tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size={"height": 56, "width": 56}, **PIXELS),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template,
    )


def _internlm_xcomposer2() -> tuple[tf.PretrainedConfig, tf.ProcessorMixin]:
    named = {"image_token": "[UNUSED_TOKEN_131]", "open": "[UNUSED_TOKEN_146]"}
    tokenizer, _ = _tokenizer("<ImageHere>", "<VideoHere>", named)
    # the released template, with the end of turn of the other families
    template = CHAT_TEMPLATE.replace("[UNUSED_TOKEN_145]", "<|end|>")
    config = ixc.InternLMXComposer2Config(
        text_config={**_text(tokenizer, "internlm_xcomposer2_text"), "plora_rank": 4, "plora_alpha": 2},
        vision_config=SIGLIP,
        image_token_id=tokenizer.convert_tokens_to_ids(named["image_token"]),
    )
    return config, ixc.InternLMXComposer2Processor(
        ixc.InternLMXComposer2ImageProcessor(tile_size=56, hd_num=4, hd_num_multiple=2),
        tokenizer,
        ixc.InternLMXComposer2VideoProcessor(tile_size=56, do_sample_frames=False),
        chat_template=template,
    )


def _qwen2() -> tuple[tf.PretrainedConfig, tf.PreTrainedTokenizerFast]:
    tokenizer, _ = _tokenizer("<image>", "<video>")
    return tf.Qwen2Config(**_text(tokenizer, "qwen2")), tokenizer


BUILDERS: dict[str, Callable[[], tuple[tf.PretrainedConfig, tf.ProcessorMixin]]] = {
    "qwen2_5_vl": lambda: _qwen_vl("qwen2_5_vl"),
    "qwen3_vl": lambda: _qwen_vl("qwen3_vl"),
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "internlm_xcomposer2": _internlm_xcomposer2,
    "qwen2": _qwen2,
}
