# SPDX-License-Identifier: Apache-2.0
"""Batches: every row holds what its record alone gives, whatever lies in the other rows."""

import pickle

import pytest
import torch

from ixc_lightning.datamodules.collate import InstructionCollator, PreferenceCollator
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import MODALITIES
from tests.datamodules.samples import SHARD, instruction, pair

FRAMES = 4
DOMAINS = ["arithmetic", "reading"]
CONTENTS = ("image", "text", "video", "images", "text", "image")
FAMILIES = ["digits", "qwen2_5_vl", "llava_onevision"]  # equal pictures, patches in a row, tiles to fill up


@pytest.fixture(scope="module")
def encoder(tiny, tiny_folder):
    def build(name):
        folder = str(tiny_folder) if name == "digits" else tiny(name).folder
        return ChatEncoder(folder, video_frames=FRAMES)

    return build


def pairs(contents=CONTENTS):
    return [pair(content, seed=seed, key=f"s{seed}") for seed, content in enumerate(contents)]


def alone(encoder, records):
    return [encoder(record, record.messages, [record.chosen, record.rejected]) for record in records]


def assert_padded(ids, mask, rows):
    """Every row holds its tokens first and zeros after them, and the longest row is full."""
    assert mask.dtype == torch.bool
    assert mask.any(dim=0).all()
    for got, real, want in zip(ids, mask, rows, strict=True):
        assert got[real].tolist() == want.tolist()
        assert real.tolist() == [True] * len(want) + [False] * (len(real) - len(want))
        assert not got[~real].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_row_holds_the_tokens_of_its_record_and_zeros_where_masked(name, encoder):
    records = pairs()
    batch, samples = PreferenceCollator(encoder(name), DOMAINS)(records), alone(encoder(name), records)
    assert_padded(batch.prompts.ids, batch.prompts.mask, [sample.ids for sample in samples])
    assert_padded(*batch.chosen, [sample.responses[0] for sample in samples])
    assert_padded(*batch.rejected, [sample.responses[1] for sample in samples])


@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_modalities_keep_their_media_in_row_order(name, encoder):
    records = pairs()
    media = PreferenceCollator(encoder(name), DOMAINS)(records).prompts.media
    samples = [sample.media for sample in alone(encoder(name), records)]
    assert set(media) == {key for sample in samples for key in sample}
    for key, merged in media.items():
        rows = [sample[key] for sample in samples if key in sample]
        parts = merged.split([len(row) for row in rows])
        for part, row in zip(parts, rows, strict=True):
            assert torch.equal(part[tuple(slice(size) for size in row.shape)], row), key
            assert part.count_nonzero() == row.count_nonzero(), key


def test_token_types_are_those_of_each_record_and_zero_where_masked(encoder):
    records = pairs()
    prompts = PreferenceCollator(encoder("qwen2_5_vl"), DOMAINS)(records).prompts
    samples = alone(encoder("qwen2_5_vl"), records)
    assert set(prompts.token_types) == {"mm_token_type_ids"}
    types = prompts.token_types["mm_token_type_ids"]
    assert types.any()
    for got, real, sample in zip(types, prompts.mask, samples, strict=True):
        assert torch.equal(got[real], sample.token_types["mm_token_type_ids"])
        assert not got[~real].any()


def test_a_batch_of_text_has_no_media(encoder):
    assert PreferenceCollator(encoder("digits"), DOMAINS)(pairs(["text", "text"])).prompts.media == {}


def test_a_batch_of_one_record_has_no_padding(encoder):
    batch = PreferenceCollator(encoder("digits"), DOMAINS)(pairs(["image"]))
    assert all(mask.all() for mask in (batch.prompts.mask, batch.chosen.mask, batch.rejected.mask))


def test_margin_domain_modality_and_key_are_those_of_each_record(encoder):
    records = [
        pair("images", key="a", margin=1.5, domain="reading"),
        pair("text", key="b", domain="arithmetic"),
        pair("both", key="c", domain="reading"),
    ]
    batch = PreferenceCollator(encoder("digits"), DOMAINS)(records)
    assert batch.margin.tolist() == [1.5, 0.0, 0.0]
    assert batch.domain.tolist() == [1, 0, 1]
    assert [MODALITIES[number] for number in batch.modality] == ["multi_image", "text", "video"]
    assert batch.keys == [f"{SHARD}:a", f"{SHARD}:b", f"{SHARD}:c"]


def test_a_margin_stays_a_float_where_every_record_has_a_whole_one(encoder):
    batch = PreferenceCollator(encoder("digits"), DOMAINS)([pair(margin=1.0), pair(margin=2.0)])
    assert batch.margin.dtype == torch.float32


def test_the_last_turn_of_an_instruction_is_its_response(encoder):
    contents = ("image", "text")
    tuning = InstructionCollator(encoder("digits"), DOMAINS)(
        [instruction(content, seed=seed, key=f"s{seed}") for seed, content in enumerate(contents)]
    )
    preference = PreferenceCollator(encoder("digits"), DOMAINS)(pairs(contents))
    assert torch.equal(tuning.prompts.ids, preference.prompts.ids)
    assert torch.equal(tuning.responses.ids, preference.chosen.ids)
    assert torch.equal(tuning.responses.mask, preference.chosen.mask)
    assert (tuning.keys, tuning.modality.tolist()) == (preference.keys, preference.modality.tolist())
    assert tuning.domain.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("collator", "record"), [(PreferenceCollator, pair), (InstructionCollator, instruction)]
)
def test_a_pickled_copy_makes_the_same_batch(collator, record, encoder):
    original = collator(encoder("digits"), DOMAINS)
    copy = pickle.loads(pickle.dumps(original))
    batch, again = original([record("image")]), copy([record("image")])
    assert torch.equal(batch.prompts.ids, again.prompts.ids)
    assert torch.equal(batch.prompts.media["pixel_values"], again.prompts.media["pixel_values"])
    assert batch.keys == again.keys


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_that_several_rows_show_are_in_the_batch_once(name, encoder):
    one, other, text = (pair(content, seed=seed) for seed, content in enumerate(("image", "images", "text")))
    batch = PreferenceCollator(encoder(name), DOMAINS)([one, text, other, one, text, other]).prompts
    plain = PreferenceCollator(encoder(name), DOMAINS)([one, other]).prompts
    assert batch.shows.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.media.keys() == plain.media.keys()
    assert all(torch.equal(batch.media[key], value) for key, value in plain.media.items())


def test_rows_without_equal_pictures_show_their_own(encoder):
    contents = ("text", "image", "text", "video")
    records = [pair(content, seed=seed) for seed, content in enumerate(contents)]
    assert PreferenceCollator(encoder("digits"), DOMAINS)(records).prompts.shows is None
