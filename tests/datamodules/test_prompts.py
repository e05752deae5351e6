# SPDX-License-Identifier: Apache-2.0
"""Prompt batches: each prompt as a response would follow it, its answer kept as it is."""

import pickle

import pytest
import torch

from ixc_lightning.datamodules import PromptDataModule
from ixc_lightning.datamodules.base import Source
from ixc_lightning.datamodules.collate import PreferenceCollator
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.prompts import PromptCollator, answer_text
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import MODALITIES, InputError
from tests.datamodules.samples import SHARD, pair
from tests.digits import FRAMES, HELDOUT

CONTENTS = ("image", "text", "video", "images")
DOMAINS = ["arithmetic", "reading"]
FAMILIES = ["digits", "qwen2_5_vl", "llava_onevision"]


@pytest.fixture(scope="module")
def encoder(tiny, tiny_folder):
    def build(name, **options):
        folder = str(tiny_folder) if name == "digits" else tiny(name).folder
        return ChatEncoder(folder, video_frames=FRAMES, **options)

    return build


def records(answers, **fields):
    return [
        pair(content, seed=seed, key=f"s{seed}", chosen=None, rejected=None, answer=answer, **fields)
        for seed, (content, answer) in enumerate(zip(CONTENTS, answers, strict=True))
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_pictures_are_those_that_a_preference_pair_would_have(name, encoder):
    """So a policy meets the very tokens that its reward model was trained on."""
    batch = PromptCollator(encoder(name), DOMAINS)(records([None] * 4))
    pairs = [pair(content, seed=seed, key=f"s{seed}") for seed, content in enumerate(CONTENTS)]
    expected = PreferenceCollator(encoder(name), DOMAINS)(pairs)
    assert torch.equal(batch.prompts.ids, expected.prompts.ids)
    assert torch.equal(batch.prompts.mask, expected.prompts.mask)
    assert batch.prompts.media.keys() == expected.prompts.media.keys()
    for group in ("token_types", "media"):
        for key, value in getattr(expected.prompts, group).items():
            assert torch.equal(getattr(batch.prompts, group)[key], value)
    assert batch.keys == expected.keys == [f"{SHARD}:s{seed}" for seed in range(4)]
    assert torch.equal(batch.modality, expected.modality)
    assert batch.domain.tolist() == [1] * 4


def test_answers_are_kept_as_they_are_and_shown_as_bare_text(encoder):
    answers = ["4 7", None, 12.5, ["yes", "no"]]
    one = encoder("digits")
    batch = PromptCollator(one, DOMAINS)(records(answers))
    assert batch.answers == answers
    said = [
        one.tokenizer.decode(ids[mask])
        for ids, mask in zip(batch.reference.ids, batch.reference.mask, strict=True)
    ]
    assert said == ["4 7", "", "12.5", '["yes", "no"]']
    assert not batch.reference.ids[~batch.reference.mask].any()


def test_a_batch_without_answers_has_empty_references(encoder):
    batch = PromptCollator(encoder("digits"), DOMAINS)(records([None] * 4))
    assert batch.reference.ids.shape == (4, 0)
    assert batch.answers == [None] * 4


@pytest.mark.parametrize(
    ("answer", "text"), [(None, ""), ("ä", "ä"), (3, "3"), (True, "true"), (["ä"], '["ä"]')]
)
def test_answers_as_text(answer, text):
    assert answer_text(answer) == text


def test_the_limit_of_tokens_is_that_of_the_prompt_alone(encoder):
    record = records(["a very long answer " * 50] * 4)[1]
    length = len(encoder("digits")(record, record.messages, []).ids)
    assert len(PromptCollator(encoder("digits", max_tokens=length), DOMAINS)([record]).keys) == 1
    message = rf"{SHARD}:s1: {length} tokens, more than max_tokens={length - 1}"
    with pytest.raises(InputError, match=message):
        PromptCollator(encoder("digits", max_tokens=length - 1), DOMAINS)([record])


def test_rows_that_only_fill_up_are_not_real(encoder):
    collator = PromptCollator(encoder("digits"), DOMAINS)
    one = records(["4"] * 4)[0]
    sample = (one, collator.encode(one))
    batch = collator.collate([sample, sample], real=[True, False], position=7, bad=[])
    assert batch.real.tolist() == [True, False]
    assert (batch.position, batch.bad) == (7, [])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Sixteen prompts of two sources with answers, and a long one apart."""
    folder = tmp_path_factory.mktemp("prompts")

    def write(name, count, text="Which is more?"):
        messages = [{"role": "user", "content": text}]
        samples = [
            Sample(f"{number}", {"id": f"{number}", "source": "test", "domain": name, "messages": messages,
                                 "answer": f"{number}"})
            for number in range(count)
        ]  # fmt: skip
        write_shards(samples, folder / name, kind=Kind.PROMPT)
        return str(folder / name)

    return {
        "chat": write("chat", 12),
        "reasoning": write("reasoning", 4),
        "long": write("long", 4, "x" * 900),
    }


def test_the_domains_are_mixed_as_the_weights_say(prompts, tiny_folder):
    sources = [Source(prompts["chat"], weight=0.5), Source(prompts["reasoning"], weight=1.5)]
    data = PromptDataModule(str(tiny_folder), train=sources, batch_size=4)
    data.setup("fit")
    epoch = [domain for batch in data.train_dataloader() for domain in batch.domain[batch.real].tolist()]
    assert data.domains == ["chat", "reasoning"]
    assert [epoch.count(0), epoch.count(1)] == [6, 6]


def test_a_batch_goes_through_workers_and_the_answers_with_it(digits, tiny_folder):
    data = PromptDataModule(
        str(tiny_folder), val=str(digits / "prompt/heldout"), batch_size=4, video_frames=FRAMES, num_workers=1
    )
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert sum(len(batch.keys) for batch in batches) == HELDOUT
    assert {MODALITIES[index] for batch in batches for index in batch.modality.tolist()} == set(MODALITIES)
    assert all(isinstance(answer, str) for batch in batches for answer in batch.answers)
    assert pickle.loads(pickle.dumps(batches[0])).keys == batches[0].keys


def test_a_prompt_over_the_limit_is_named(prompts, tiny_folder):
    data = PromptDataModule(str(tiny_folder), train=prompts["long"], batch_size=2, max_tokens=100)
    data.setup("fit")
    with pytest.raises(InputError, match=r"long.*tokens, more than max_tokens=100.*leave the sample out"):
        next(iter(data.train_dataloader()))


def test_prompts_over_the_limit_are_left_out_and_counted_if_asked_for(prompts, tiny_folder):
    data = PromptDataModule(
        str(tiny_folder),
        train=[Source(prompts["chat"]), Source(prompts["long"])],
        batch_size=16,
        max_tokens=100,
        on_bad_sample="quarantine",
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.real.sum() == 12
    assert len(batch.bad) == 4
    assert all("more than max_tokens=100" in reason for _, _, reason in batch.bad)


def test_shards_of_another_kind_are_refused(digits, tiny_folder):
    data = PromptDataModule(str(tiny_folder), train=str(digits / "instruction/train"))
    with pytest.raises(InputError, match="holds instruction records, but is read as prompt data"):
        data.setup("fit")


def test_an_example_has_the_question_and_the_pictures(digits, tiny_folder):
    data = PromptDataModule(str(tiny_folder), val=str(digits / "prompt/heldout"), video_frames=FRAMES)
    data.setup("validate")
    example = data.example("val", data.dataset("val").name(1))
    assert example.prompt
    assert len(example.pictures) == 1
    assert (example.chosen, example.rejected) == ("", "")
