# SPDX-License-Identifier: Apache-2.0
"""A vision-language model of about one million parameters that learns handwritten digits on a laptop CPU.

It is an InternVL of transformers with small numbers and a small vocabulary, nothing of our own, so that every
line that trains, exports or serves it is the line that does so for a 7B model. Tests, docs and the digits
recipes all start from it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE = 32
PATCH_SIZE = 8
DOWNSAMPLE_RATIO = 0.25  # the pixel shuffle folds 4 x 4 patches into one token
TOKENS_PER_IMAGE = int(IMAGE_SIZE // PATCH_SIZE * DOWNSAMPLE_RATIO) ** 2

PAD, END, USER, ASSISTANT = "<pad>", "<|end|>", "<|user|>", "<|assistant|>"
PICTURE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "video_token": "<video>",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Each word becomes one token; other text falls back to smaller pieces, down to bytes, so any prompt can be
# encoded.
LEXICON = """
a above add after all and answer any appear are as ascending at before below between biggest both by clip
comes count descending difference different digit digits do does each eight ends equal even fewer first five
four frame from greater greatest has have here how i image images in is it its large larger largest last
least less many minus more most next nine no not number numbers odd of one or order other picture pictures
please plus read result same say second see sequence seven show shown shows six small smaller smallest so
sorted starts sum tell ten than that the their them then there these they think third this three to together
total two value video what when which write written yes you zero
"""


def build_tiny(folder: str | Path, *, seed: int = 0) -> None:
    """Write the tiny model with fresh weights, and its processor, as a Hugging Face folder.

    Args:
        folder: where to write ``config.json``, ``model.safetensors`` and the processor's files.
        seed: seed of the fresh weights; the caller's random state is left alone.
    """
    processor = tiny_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(tiny_config(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """The sizes: 2 vision layers of width 64, 3 language layers of width 128, tied embeddings.

    The initialiser's range is five times the usual 0.02, which suits widths of thousands; at width 128 it is
    about 1/√d.
    """
    width = {"initializer_range": 0.1}
    return InternVLConfig(
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "layer_scale_init_value": 1.0,  # the usual 0.1 is for training hundreds of layers' worth of steps
            **width,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 288,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids(END),
            "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
            **width,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(PICTURE_TOKENS["context_image_token"]),
        image_seq_length=TOKENS_PER_IMAGE,
        downsample_ratio=DOWNSAMPLE_RATIO,
        tie_word_embeddings=True,
    )


def tiny_processor() -> InternVLProcessor:
    """The processor: pictures and frames as squares of 32 pixels, the tokenizer, and the chat template."""
    pixels = {
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=False, **pixels),
        video_processor=InternVLVideoProcessor(do_sample_frames=False, **pixels),
        tokenizer=tiny_tokenizer(),
        image_seq_length=TOKENS_PER_IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges spell the lexicon; digits stand alone, so that 47 is read as 4 and 7."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: training ends when every word of the lexicon is one token
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, END, USER, ASSISTANT, "<|system|>", *PICTURE_TOKENS.values()],
    )
    words = [
        form for word in LEXICON.split() for form in (f" {word}", word, f" {word.title()}", word.title())
    ]
    words += [f" {digit}" for digit in range(10)]
    tokenizer.train_from_iterator(words, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=AddedToken(END, special=True, normalized=False),
        padding_side="left",
        model_max_length=1024,
        model_specific_special_tokens=PICTURE_TOKENS,
    )
    # InternVL's processor writes such a label before each frame.
    wrapped.add_tokens([f"Frame{number}: " for number in range(1, 10)])
    return wrapped
