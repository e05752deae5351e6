# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's ids, the template's turns, and pictures at their placeholders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2Processor
from ixc_lightning.models.internlm_xcomposer2.tokenization import read_tokenizer
from ixc_lightning.types import InputError, Record
from tests.models.internlm_xcomposer2.reference import (
    byte_processor,
    case,
    image,
    meta,
    write_vocabulary,
)

IMAGE_ID = 271
REWARD_CASES = ("text", "sys", "img", "img2", "imgp", "multi")
SUFFIX = "\n</s>[UNUSED_TOKEN_130]"  # what makes a turn of ours the release's: it keeps the line break


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    read_tokenizer(folder).save_pretrained(folder / "saved")
    return AutoTokenizer.from_pretrained(folder / "saved")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    byte_processor().save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    "about", meta()["tokenizer"]["cases"], ids=lambda about: about["text"][:12] or "empty"
)
def test_recorded_ids(tokenizer, about):
    assert tokenizer(about["text"])["input_ids"] == about["bos"]
    assert tokenizer(about["text"], add_special_tokens=False)["input_ids"] == about["nobos"]


def test_the_sizes_and_special_tokens(tokenizer):
    about = meta()["tokenizer"]
    assert (tokenizer.vocab_size, len(tokenizer)) == (about["vocab_size"], about["len"])
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in about["special"]} == about["special"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 2, 1)
    assert (tokenizer.image_token_id, tokenizer.reward_token_id) == (92528, 92527)


@pytest.mark.parametrize(
    "text", ["Hello  world\n 你好 😀 it's", " leading", "tab\tand\n\nlines", "«naïve» — ½ ﷽"]
)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.model is not there"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(InputError, match="is no sentencepiece model"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", REWARD_CASES)
def test_the_template_writes_the_recorded_prompts(processor, name):
    about = case(f"reward.{name}")
    text = processor.apply_chat_template(about["conversation"], tokenize=False)
    assert text + SUFFIX.lstrip("\n") == about["prompt"]


def test_an_only_picture_goes_before_everything(processor):
    parts = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text == "<ImageHere>[UNUSED_TOKEN_146]user\nDescribe the picture.[UNUSED_TOKEN_145]\n"
    by_hand = processor(images=image("land"), text=text.removeprefix("<ImageHere>"))
    ids = processor(images=image("land"), text=text)["input_ids"]
    assert ids == by_hand["input_ids"]
    assert ids[0][:3] == [1, IMAGE_ID, IMAGE_ID]


def test_several_pictures_are_numbered(processor):
    parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "compare them"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "[UNUSED_TOKEN_146]user\nImage1 <ImageHere>; Image2 <VideoHere>; compare them[UNUSED_TOKEN_145]\n"
        "[UNUSED_TOKEN_146]assistant\n"
    )


def test_messages_may_hold_the_pictures_themselves(processor):
    parts = [{"type": "image", "image": image("land")}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert batch["input_ids"] == processor(text=text, images=image("land"))["input_ids"]
    assert batch["image_grid_hw"].tolist() == [[2, 2]]


def test_another_role_is_refused(processor):
    with pytest.raises(Exception, match="roles are system, user and assistant, not tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def clip():
    return np.random.default_rng(0).integers(0, 256, (3, 36, 64, 3), dtype=np.uint8)


def test_pictures_and_videos_come_out_in_the_order_of_their_placeholders(processor):
    options = {"videos_kwargs": {"do_sample_frames": False}, "return_tensors": "pt"}
    text = "a <ImageHere> b <VideoHere> c <ImageHere>"
    batch = processor(text=text, images=[image("land"), image("port")], videos=[clip()], **options)
    alone = [
        processor(text="<ImageHere>", images=image("land"), hd_num=6, return_tensors="pt"),
        processor(text="<VideoHere>", videos=[clip()], **options),
        processor(text="<ImageHere>", images=image("port"), hd_num=6, return_tensors="pt"),
    ]
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
    assert torch.equal(batch["image_grid_hw"], torch.cat([one["image_grid_hw"] for one in alone]))
    runs = [len(run) for run in "".join("i" if x == IMAGE_ID else " " for x in batch["input_ids"][0]).split()]
    assert runs == [processor.num_image_tokens(*one["image_grid_hw"][0].tolist()) for one in alone]


def test_texts_of_a_batch_have_pictures_of_their_own(processor):
    texts = ["one", "no picture", "<ImageHere> two <ImageHere>"]
    images = [[image("land")], [], [image("port"), image("small")]]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    assert (batch["input_ids"] == IMAGE_ID).sum(1).tolist() == [27, 0, 19 + 13]
    assert batch["image_grid_hw"].tolist() == [[2, 2], [2, 1], [1, 1]]
    flat = processor(
        text=["<ImageHere>one", *texts[1:]], images=[one for own in images for one in own], padding=True
    )
    assert flat["input_ids"] == batch["input_ids"].tolist()


def test_images_are_cut_as_a_call_says(processor):
    picture = Image.new("RGB", (300, 300))
    grids = [
        processor(text="x", images=picture, **options)["image_grid_hw"].tolist()
        for options in (
            {},
            {"hd_num": 4},
            {"images_kwargs": {"hd_num": 1}},
            {"variant": "training", "hd_num": 1},
        )
    ]
    assert grids == [[[3, 3]], [[2, 2]], [[1, 1]], [[1, 1]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<ImageHere>"}, "1 placeholders <ImageHere>, but there are 0 images"),
        ({"text": "<ImageHere>", "images": ["land", "port"]}, "1 placeholders .* but there are 2 images"),
        ({"text": "none", "images": ["land", "port"]}, "0 placeholders .* but there are 2 images"),
        ({"text": ["<ImageHere>", "x"], "images": [[], ["port"]]}, r"2 placeholders|\[1, 0\]|\[1, 1\]"),
        ({"text": "<VideoHere>", "images": ["land"]}, "0 placeholders <ImageHere>, but there are 1 images"),
        ({"text": "a [UNUSED_TOKEN_131]"}, "stands for parts of pictures"),
        ({}, "needs text"),
    ],
)
def test_pictures_and_placeholders_must_match(processor, arguments, message):
    images = arguments.get("images")
    if images:
        arguments = {**arguments, "images": [
            image(one) if isinstance(one, str) else [image(name) for name in one] for one in images
        ]}  # fmt: skip
    with pytest.raises(InputError, match=message):
        processor(**arguments)


def test_tokens_beyond_the_vocabulary_are_refused(tokenizer, processor):
    full = InternLMXComposer2Processor(processor.image_processor, tokenizer, processor.video_processor)
    with pytest.raises(InputError, match=r"holds <\|im_start\|>, for which the model has no embedding"):
        full(text="<|im_start|>user")


def test_a_picture_is_never_cut():
    with pytest.raises(InputError, match="truncation cuts a picture of 27 tokens"):
        byte_processor()(text="long", images=image("land"), truncation=True, max_length=20)


@pytest.mark.parametrize("name", ["text", "img", "multi"])
def test_the_datamodules_encoder_makes_the_recorded_sequence(name, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    encoder = ChatEncoder(str(tmp_path), response_suffix=SUFFIX)
    about = case(f"reward.{name}")
    user, assistant = about["conversation"]
    words = user["content"].replace("Image1 <ImageHere>; Image2 <ImageHere>; ", "")
    parts = [{"type": "image", "file": f"{name}.png"} for name in about["images"]]
    messages = ({"role": "user", "content": [*parts, {"type": "text", "text": words}]},)
    record = Record(
        key="k", shard="s", source="t", domain="d", messages=messages, chosen=None, rejected=None,
        margin=0.0, answer=None, media={f"{name}.png": png(name) for name in about["images"]},
    )  # fmt: skip
    answer = [{"role": "assistant", "content": [{"type": "text", "text": assistant["content"]}]}]
    encoded = encoder(record, messages, [answer])
    joined = torch.cat((encoded.ids, encoded.responses[0]))
    images = [image(name) for name in about["images"]]
    whole = processor(images=images or None, text=about["prompt"], return_tensors="pt")
    assert joined.tolist() == whole["input_ids"][0].tolist()
    for key in ("pixel_values", "image_grid_hw"):
        assert (key in encoded.media) == bool(images)
        assert not images or torch.equal(encoded.media[key], whole[key])


def png(name):
    import io

    buffer = io.BytesIO()
    image(name).save(buffer, "PNG")
    return buffer.getvalue()
