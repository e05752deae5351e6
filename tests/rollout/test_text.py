# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of a rollout: where turns end, what was said, and whether two models read it alike."""

import copy

import pytest

from ixc_lightning.models.tiny import END, tiny_processor
from ixc_lightning.processors import load_processor
from ixc_lightning.rollout import check_same_tokenizer, same_tokenizer, stop_tokens, texts
from ixc_lightning.rollout.text import differences, reference_texts
from ixc_lightning.types import InputError, Responses
from tests.family_configs import BUILDERS
from tests.rollout.prompts import STOP, rollout_of

families = pytest.mark.parametrize("family", BUILDERS)


@pytest.fixture
def processor():
    return tiny_processor()


@families
def test_the_end_of_turn_of_every_family_is_found(family):
    processor = BUILDERS[family]()[1]
    tokenizer = getattr(processor, "tokenizer", processor)
    assert stop_tokens(processor) == (tokenizer.convert_tokens_to_ids(END),)


def test_a_template_that_ends_turns_with_another_token_adds_that_one(processor):
    other = processor.tokenizer.convert_tokens_to_ids("<|user|>")
    processor.chat_template = processor.chat_template.replace(END, "<|user|>\n")
    assert stop_tokens(processor) == (processor.tokenizer.eos_token_id, other)


def test_a_template_that_ends_turns_with_plain_text_adds_nothing(processor):
    processor.chat_template = processor.chat_template.replace(END, " and so on")
    assert stop_tokens(processor) == (processor.tokenizer.eos_token_id,)


def test_a_template_for_strings_is_read_too(processor):
    tokenizer = processor.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|system|>' }}{% endfor %}"
    )
    expected = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|system|>"))
    assert stop_tokens(tokenizer) == expected


def test_a_tokenizer_without_template_stops_at_its_end(processor):
    processor.tokenizer.chat_template = None
    assert stop_tokens(processor.tokenizer) == (processor.tokenizer.eos_token_id,)


def test_a_template_that_hides_the_answer_is_an_error(processor):
    processor.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(InputError, match=r"does not write the assistant's text.*sampling.stop_tokens"):
        stop_tokens(processor)


def test_responses_become_text_without_their_stop_token(processor):
    assert processor.tokenizer.eos_token_id == STOP
    said = ["It is 4.", "yes", ""]
    ids = [processor.tokenizer(text)["input_ids"] for text in said]
    width = max(map(len, ids)) + 1
    rollout = rollout_of([row + [STOP] + [0] * (width - len(row) - 1) for row in ids])
    assert texts(rollout, processor) == said
    assert rollout.empty.tolist() == [False, False, True]


def test_a_response_that_was_cut_keeps_its_last_token(processor):
    ids = processor.tokenizer("It is 4")["input_ids"]
    assert texts(rollout_of([ids]), processor) == ["It is 4"]


def test_special_tokens_in_the_midst_of_a_response_are_shown(processor):
    """A verifier must not take "<image>4" for 4."""
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = processor.tokenizer("4")["input_ids"]
    assert texts(rollout_of([[image, *ids, STOP]]), processor) == ["<image>4"]


def test_references_become_text_and_missing_ones_nothing(processor):
    ids = processor.tokenizer("first one", return_tensors="pt")["input_ids"]
    reference = Responses(ids.repeat(2, 1), ids.new_ones(2, ids.shape[1]).bool())
    reference.mask[1] = False
    assert reference_texts(reference, processor) == ["first one", ""]


@families
def test_a_processor_is_the_same_as_one_built_again(family):
    assert same_tokenizer(BUILDERS[family]()[1], BUILDERS[family]()[1])


def test_having_padded_and_cut_texts_does_not_make_another_tokenizer(processor):
    used = tiny_processor()
    used.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert same_tokenizer(processor, used)


@families
def test_a_processor_is_the_same_when_it_was_saved_and_loaded(family, tmp_path):
    processor = BUILDERS[family]()[1]
    processor.save_pretrained(tmp_path / "first")
    first = load_processor(str(tmp_path / "first"))
    first.save_pretrained(tmp_path / "second")
    assert differences(first, load_processor(str(tmp_path / "second"))) == []


def _more_tokens(processor):
    processor.tokenizer.add_tokens(["zebra"])


def _other_end(processor):
    processor.tokenizer.eos_token = "<|user|>"


def _other_template(processor):
    processor.chat_template = "Human: " + processor.chat_template


def _other_pixels(processor):
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]


def _other_clips(processor):
    processor.video_processor.size = {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_more_tokens, "tokenizer"),
        (_other_end, "tokenizer"),
        (_other_template, "chat template"),
        (_other_pixels, "image processor"),
        (_other_clips, "video processor"),
    ],
)
def test_a_difference_is_found_and_named(processor, change, name):
    other = copy.deepcopy(processor)
    change(other)
    assert differences(processor, other) == [name]
    assert not same_tokenizer(processor, other)
    with pytest.raises(InputError, match=f"the reward model has another {name} than the policy"):
        check_same_tokenizer(processor, other, role="reward model")


def test_a_tokenizer_alone_differs_from_its_processor_in_what_it_cannot_read(processor):
    processor.tokenizer.chat_template = processor.chat_template
    assert differences(processor, processor.tokenizer) == ["image processor", "video processor"]


def test_the_same_processor_passes_the_check(processor):
    check_same_tokenizer(processor, tiny_processor(), role="critic")
