# SPDX-License-Identifier: Apache-2.0
"""Texts that a chat template wrote make the very tokens of the conversation that they were written from."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from ixc_lightning.datamodules.candidates import encode_candidates
from ixc_lightning.datamodules.conversations import given_candidates
from ixc_lightning.datamodules.given_media import picture_bytes
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.serving.written import WrittenChats
from ixc_lightning.types import InputError

PICTURES = [
    picture_bytes(np.random.default_rng(n).integers(0, 256, (56, 56, 3), dtype=np.uint8), where="x")
    for n in range(2)
]
FAMILIES = ["digits", "text", "qwen2_5_vl"]
STARTED = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template of a model of text, which writes a first token itself and a line break behind each turn."""
QUESTION = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three 4"},
]


@pytest.fixture
def encoder(request, tiny, tiny_folder, tmp_path):
    if request.param == "text":
        tokenizer = AutoTokenizer.from_pretrained(tiny("qwen2").folder)
        tokenizer.bos_token, tokenizer.chat_template = "<|vision_start|>", STARTED
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    folders = {"digits": lambda: tiny_folder, "text": lambda: tmp_path}
    return ChatEncoder(str(folders.get(request.param, lambda: tiny(request.param).folder)()))


def _turns(count):
    parts = [{"type": "image"}] * count
    return [*QUESTION[:2], {"role": "user", "content": [*parts, {"type": "text", "text": "three 4"}]}]


def _text(content):
    return content if isinstance(content, str) else content[-1]["text"]


def _written(encoder, turns, answer=None):
    """What the chat template writes, as a trainer calls it."""
    turns = [*turns, {"role": "assistant", "content": answer}] if answer is not None else turns
    if encoder.is_text_only:
        turns = [{**turn, "content": _text(turn["content"])} for turn in turns]
    else:
        turns = [
            turn
            if isinstance(turn["content"], list)
            else {**turn, "content": [{"type": "text", "text": turn["content"]}]}
            for turn in turns
        ]
    return encoder.processor.apply_chat_template(turns, add_generation_prompt=answer is None, tokenize=False)


def _tokens(encoder, candidates):
    encoded = encode_candidates(encoder, candidates, row=0).encoded
    return encoded.ids.tolist(), [ids.tolist() for ids in encoded.responses]


def _expected(encoder, answer, images=()):
    candidates = given_candidates(_turns(len(images)), [answer], images=list(images), shard="s", key="0")
    return _tokens(encoder, candidates)


@pytest.mark.parametrize("encoder", FAMILIES, indirect=True)
@pytest.mark.parametrize("knows_prompt", [False, True])
def test_a_written_chat_has_the_tokens_of_its_conversation(encoder, knows_prompt):
    count = 0 if encoder.is_text_only else 2
    chats, images = WrittenChats(encoder), PICTURES[:count]
    text = _written(encoder, _turns(count), "five\n\nsix")
    prompt = _written(encoder, _turns(count)) if knows_prompt else None
    got = chats.candidates(text, prompt=prompt, images=images, where="query[0]")
    ids, (answer,) = _expected(encoder, "five\n\nsix", images)
    assert _tokens(chats.encoder, got) == (ids, [answer])
    assert encoder.tokenizer.decode(answer).startswith("five\n\nsix")


@pytest.mark.parametrize("encoder", FAMILIES, indirect=True)
def test_padding_a_missing_end_and_a_missing_start_make_no_difference(encoder):
    chats = WrittenChats(encoder)
    text = _written(encoder, _turns(0), "five").rstrip("\n")
    expected = _expected(encoder, "five")
    cut = text.removesuffix(chats.closing)
    padded = text if chats.pad == chats.closing else chats.pad * 2 + text + chats.pad * 3
    bare = text.removeprefix(encoder.tokenizer.bos_token or "")
    assert cut != text
    for form in (cut, padded, bare, text + "\n"):
        assert _tokens(chats.encoder, chats.candidates(form, where="input")) == expected


@pytest.mark.parametrize("encoder", ["qwen2_5_vl"], indirect=True)
def test_placeholders_that_were_decoded_from_tokens_count_once_for_each_picture(encoder):
    chats = WrittenChats(encoder)
    ids, (answer,) = _expected(encoder, "five", PICTURES)
    decoded = encoder.tokenizer.decode([*ids, *answer])
    assert decoded.count(encoder.processor.image_token) > len(PICTURES)
    got = chats.candidates(decoded, images=PICTURES, where="query[0]")
    assert _tokens(chats.encoder, got) == (ids, [answer])


@pytest.mark.parametrize("encoder", ["digits"], indirect=True)
def test_a_text_without_a_response_is_refused_and_told_how_one_begins(encoder):
    with pytest.raises(InputError, match=r"query\[3\]: holds no '<\|assistant\|>'"):
        WrittenChats(encoder).candidates("just a text", where="query[3]")


@pytest.mark.parametrize("encoder", ["digits"], indirect=True)
def test_the_encoder_of_conversations_stays_as_it_was(encoder):
    before = _expected(encoder, "five")
    WrittenChats(encoder)
    assert _expected(encoder, "five") == before
