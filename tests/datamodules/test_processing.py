# SPDX-License-Identifier: Apache-2.0
"""Encoding: prompt and response are what the model's own chat template writes, or an error says why not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.datamodules.processing import TOKEN_ALIGNED, ChatEncoder
from ixc_lightning.types import InputError
from tests.datamodules.samples import PLACE, message, pair
from tests.families import KINDS

FRAMES = 4
PER_TOKEN = ("input_ids", "attention_mask", *TOKEN_ALIGNED)
CASES = [
    (name, content)
    for name, contents in {**KINDS, "digits": KINDS["internvl"]}.items()
    for content in contents
]
END = "<|end|>"
LONGER_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWRITING_TEMPLATE = LONGER_TEMPLATE.replace("<|end|>", "{% if loop.last %} (last){% endif %}<|end|>")
REFUSING_TEMPLATE = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture(scope="module")
def encoder(tiny, tiny_folder):
    """The encoder of a family, by name; ``digits`` is the model of the recipes."""

    def build(name, **options):
        folder = str(tiny_folder) if name == "digits" else tiny(name).folder
        return ChatEncoder(folder, video_frames=FRAMES, **options)

    return build


@pytest.fixture
def changed(tiny_folder, tmp_path):
    """The folder of the tiny processor with another chat template; none deletes it."""

    def build(template):
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return str(folder)

    return build


def encode(encoder, record):
    return encoder(record, record.messages, [record.chosen, record.rejected])


def _reference(encoder, record, answer):
    """The whole conversation through the processor's own chat template, less a line break at its end."""
    processor, messages = encoder.processor, [*record.messages, *answer]
    if encoder.is_text_only:
        words = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in messages]
        return processor.apply_chat_template(words, tokenize=True, return_dict=True, return_tensors="pt")
    images = [
        decode_image(record.media[part["file"]], where="") for part in record.parts if part["type"] == "image"
    ]
    clips = [
        decode_video(record.media[part["file"]], frames=FRAMES, where="")
        for part in record.parts
        if part["type"] == "video"
    ]
    inputs = {"images": [images]} if images else {}
    if clips:
        metadata = [
            {
                "total_num_frames": clip.num_frames,
                "fps": clip.fps,
                "duration": clip.num_frames / clip.fps,
                "frames_indices": clip.indices,
            }
            for clip in clips
        ]
        inputs["videos"] = [[clip.frames for clip in clips]]
        inputs["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": [metadata]}
    text = processor.apply_chat_template(messages, tokenize=False).rstrip("\n")
    return processor(text=[text], return_tensors="pt", **inputs)


@pytest.mark.parametrize(("name", "content"), CASES)
def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(name, content, encoder):
    encode_as, record = encoder(name), pair(content)
    sample = encode(encode_as, record)
    for answer, ids in zip((record.chosen, record.rejected), sample.responses, strict=True):
        expected = _reference(encode_as, record, answer)
        assert torch.cat([sample.ids, ids]).tolist() == expected["input_ids"][0].tolist()


@pytest.mark.parametrize(("name", "content"), CASES)
def test_media_and_token_types_are_the_processors_own(name, content, encoder):
    encode_as, record = encoder(name), pair(content, seed=1)
    sample, expected = encode(encode_as, record), _reference(encode_as, record, record.chosen)
    assert set(sample.media) == set(expected) - set(PER_TOKEN)
    for key, value in sample.media.items():
        assert torch.equal(value, torch.as_tensor(expected[key])), key
    assert set(sample.token_types) == set(expected) & set(TOKEN_ALIGNED)
    for key, value in sample.token_types.items():
        assert torch.equal(value, torch.as_tensor(expected[key])[0, : len(sample.ids)]), key


@pytest.mark.parametrize("content", ["image", "images", "video"])
def test_a_prompt_with_media_has_media_and_more_tokens_than_its_text(content, encoder):
    with_media, alone = encode(encoder("digits"), pair(content)), encode(encoder("digits"), pair("text"))
    assert with_media.media
    assert not alone.media
    assert len(with_media.ids) > len(alone.ids)


# InternLM-XComposer's own tokenizer has no such token; its own tests see to the end that it has.
@pytest.mark.parametrize("name", sorted({*KINDS, "digits"} - {"internlm_xcomposer2"}))
def test_a_response_ends_with_the_end_of_its_turn(name, encoder):
    encode_as = encoder(name)
    end = encode_as.tokenizer.convert_tokens_to_ids(END)
    for ids in encode(encode_as, pair()).responses:
        assert ids.tolist().index(end) == len(ids) - 1


def test_a_response_does_not_hold_the_line_break_after_its_turn(changed):
    encoder = ChatEncoder(changed(LONGER_TEMPLATE))
    sample = encode(encoder, pair(chosen=(message("assistant", "It is 4."),)))
    assert encoder.tokenizer.decode(sample.responses[0]) == f"It is 4.{END}"


def test_several_turns_of_context_are_all_in_the_prompt(encoder):
    turns = (message("user", "one"), message("assistant", "two"), message("user", "three"))
    encode_as = encoder("digits")
    prompt = encode_as.tokenizer.decode(encode(encode_as, pair(messages=turns)).ids)
    assert prompt == f"<|user|>one{END}<|assistant|>two{END}<|user|>three{END}<|assistant|>"


def test_a_prompt_can_be_encoded_without_a_response(encoder):
    record = pair("image")
    sample = encoder("digits")(record, record.messages, [])
    assert sample.responses == []
    assert torch.equal(sample.ids, encode(encoder("digits"), record).ids)


def test_a_tokenizer_that_adds_special_tokens_leaves_them_to_the_template(tiny, tmp_path):
    folder = shutil.copytree(tiny("qwen2").folder, tmp_path / "adding")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single=f"<pad> $A {END}", special_tokens=[("<pad>", 0), (END, tokenizer.token_to_id(END))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    encoder, record = ChatEncoder(str(folder)), pair()
    assert encoder.tokenizer("word")["input_ids"][0] == 0
    sample = encode(encoder, record)
    expected = _reference(encoder, record, record.chosen)["input_ids"][0]
    assert torch.cat([sample.ids, sample.responses[0]]).tolist() == expected.tolist()


def test_the_suffix_lands_after_the_end_of_the_turn(encoder):
    encode_as = encoder("digits", response_suffix="<pad>")
    for plain, ids in zip(
        encode(encoder("digits"), pair()).responses, encode(encode_as, pair()).responses, strict=True
    ):
        assert ids.tolist() == [*plain.tolist(), encode_as.tokenizer.convert_tokens_to_ids("<pad>")]


@pytest.mark.parametrize("content", ["image", "images", "video"])
def test_media_for_a_text_model_are_refused(content, encoder):
    record = pair(content)
    with pytest.raises(
        InputError, match=f"{PLACE}: a {record.modality} prompt, but the model reads text only"
    ):
        encode(encoder("qwen2"), record)


def test_a_sample_as_long_as_the_limit_is_whole(encoder):
    whole = encode(encoder("digits"), pair("image"))
    length = len(whole.ids) + max(map(len, whole.responses))
    limited = encode(encoder("digits", max_tokens=length), pair("image"))
    assert len(limited.ids) + max(map(len, limited.responses)) == length


def test_a_sample_longer_than_the_limit_is_an_error_that_names_it_and_the_limit(encoder):
    whole = encode(encoder("digits"), pair("image"))
    length = len(whole.ids) + max(map(len, whole.responses))
    with pytest.raises(
        InputError, match=f"{PLACE}: {length} tokens, more than max_tokens={length - 1}; raise"
    ):
        encode(encoder("digits", max_tokens=length - 1), pair("image"))


def test_a_template_that_rewrites_the_prompt_is_refused(changed):
    encoder = ChatEncoder(changed(REWRITING_TEMPLATE))
    with pytest.raises(InputError, match=f"{PLACE}: the chat template rewrites the prompt"):
        encode(encoder, pair())


def test_a_conversation_that_the_template_refuses_is_named(changed):
    encoder = ChatEncoder(changed(REFUSING_TEMPLATE))
    with pytest.raises(
        InputError, match=rf"{PLACE}: the chat template cannot take .*\(roles must alternate\)"
    ):
        encode(encoder, pair())


def test_a_prompt_that_the_processor_refuses_is_named(encoder):
    record = pair(messages=(message("user", "a placeholder <image> without its picture"),))
    with pytest.raises(InputError, match=f"{PLACE}: the processor cannot take this text prompt"):
        encode(encoder("llava_onevision"), record)


@pytest.mark.parametrize("content", ["image", "video"])
def test_a_file_that_cannot_be_read_is_named(content, encoder):
    name = f"00.{content}"
    with pytest.raises(InputError, match=rf"{PLACE}\.{name}: cannot be decoded"):
        encode(encoder("digits"), pair(content, media={name: b"damaged"}))


def test_a_processor_without_a_chat_template_is_refused(changed):
    with pytest.raises(InputError, match=r"has no chat template: add chat_template.jinja"):
        ChatEncoder(changed(None))


def test_the_home_directory_may_be_written_as_a_tilde(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_folder, tmp_path / "model")
    assert ChatEncoder("~/model").processor.chat_template


def test_lengths_of_responses_are_those_of_their_texts_without_media_and_template(encoder):
    encode_as, record = encoder("digits"), pair("image", media={})
    assert encode_as.response_lengths(record) == tuple(
        len(encode_as.tokenizer(turn["content"][0]["text"])["input_ids"])
        for turn in (*record.chosen, *record.rejected)
    )
    assert encode_as.response_lengths(record)[0] > encode_as.response_lengths(record)[1]


def test_pictures_are_the_images_and_then_the_sampled_frames(encoder):
    record = pair("both")
    pictures = encoder("digits").pictures(record)
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert len(pictures) == 1 + FRAMES
    clip = decode_video(record.media["00.video"], frames=FRAMES, where="")
    assert np.array_equal(np.asarray(pictures[1]), clip.frames[0])
