# SPDX-License-Identifier: Apache-2.0
"""A record in the form of chat completions says the same, with its media inside."""

import base64
import io

import pytest
from PIL import Image

from ixc_lightning.datamodules.chat import chat_messages
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError, Record

FRAMES = 3


def _data(part):
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return head, base64.b64decode(data, validate=True)


@pytest.fixture(scope="module")
def records(digits):
    return {
        record.modality: record for record in ShardDataset(str(digits / "prompt/heldout"), kind=Kind.PROMPT)
    }


@pytest.mark.parametrize("modality", ["text", "image", "multi_image"])
def test_texts_and_pictures_stay_in_their_order_and_pictures_keep_their_bytes(records, modality):
    record = records[modality]
    (turn,) = chat_messages(record, record.messages, video_frames=FRAMES)
    assert turn["role"] == "user"
    for part, chat in zip(record.parts, turn["content"], strict=True):
        if part["type"] == "text":
            assert chat == part
        else:
            head, data = _data(chat)
            assert data == record.media[part["file"]]
            assert head == "data:" + Image.MIME[Image.open(io.BytesIO(data)).format]


def test_a_clip_becomes_its_frames(records):
    record = records["video"]
    (turn,) = chat_messages(record, record.messages, video_frames=FRAMES)
    kinds = [part["type"] for part in turn["content"]]
    assert kinds == ["text", *["image_url"] * FRAMES, "text"]
    assert turn["content"][0]["text"] == "[3 frames of a clip, in order:]"
    assert {_data(part)[0] for part in turn["content"][1:-1]} == {"data:image/png"}


def test_a_picture_that_is_none_is_named():
    turns = ({"role": "user", "content": [{"type": "image", "file": "00.png"}]},)
    record = Record("k", "s.tar", "s", "d", turns, media={"00.png": b"no"})
    with pytest.raises(InputError, match=r"s\.tar:k\.00\.png: cannot be decoded"):
        chat_messages(record, turns, video_frames=FRAMES)
