# SPDX-License-Identifier: Apache-2.0
"""A text reward model that reads the last token is a classifier of transformers too, with the same scores."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.models.sequence_classification import save_classifier, why_no_classifier
from ixc_lightning.types import Responses
from tests.families import collate

SCORE_TOLERANCE = 1e-5  # float32 sums in another order; scores are of order one
RESPONSES = [[11, 12, 1], [13, 1], [14, 15, 16, 17, 1], [18, 1], [19, 20, 1], [1]]


@pytest.fixture(scope="module")
def family(tiny):
    return tiny("qwen2")


@pytest.fixture(scope="module")
def model(family):
    torch.manual_seed(0)
    model = RewardModel(family.folder, pooling="last").eval()
    model.store_statistics(0.25, 2.0)
    return model


@pytest.fixture
def folder(family, model, tmp_path):
    assert save_classifier(model, family.processor, tmp_path) == "Qwen2ForSequenceClassification"
    family.processor.save_pretrained(tmp_path)
    return tmp_path


def _sequences(family):
    length = max(map(len, RESPONSES))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in RESPONSES])
    mask = torch.tensor([[place < len(row) for place in range(length)] for row in RESPONSES])
    return join(collate(family.samples(["text"] * 3)), Responses(ids, mask))


def _rows(sequences):
    return [ids[mask].tolist() for ids, mask in zip(sequences.ids, sequences.mask, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [1, 6])
def test_its_scores_are_those_of_the_reward_model_padded_or_not(side, batch, family, model, folder):
    sequences = _sequences(family)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    judge = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = _rows(sequences)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    with torch.no_grad():
        expected = model(sequences, None)
        theirs = [judge(**tokenizer.pad({"input_ids": part}, return_tensors="pt")).logits for part in parts]
    assert theirs[0].shape == (batch, 1)
    assert torch.allclose(torch.cat(theirs).flatten(), expected, atol=SCORE_TOLERANCE, rtol=0)
    assert expected.std() > 100 * SCORE_TOLERANCE  # the rows are told apart


def test_it_loads_whole_and_without_leftovers(folder):
    _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_it_loads_as_the_reward_model_and_as_the_base_model_too(model, folder):
    loaded = RewardModel.from_pretrained(folder)
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    assert loaded.pooling == "last"
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert report["unexpected_keys"] == {"score.weight"}


def test_its_config_says_one_label_without_activation_and_names_the_padding(folder, family):
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.architectures == ["Qwen2ForSequenceClassification"]
    assert (config.num_labels, config.problem_type) == (1, "regression")
    assert config.pad_token_id == family.processor.pad_token_id


def test_writing_it_leaves_the_model_as_it_was(family, model, folder):
    assert model.backbone.config.num_labels == 2  # transformers' default
    assert model.backbone.config.architectures != ["Qwen2ForSequenceClassification"]


def _tokenizer(family, **changes):
    return AutoTokenizer.from_pretrained(family.folder, **changes)


def test_another_pooling_is_told(family):
    mean = RewardModel(family.folder)
    assert "pooling: mean" in why_no_classifier(mean, family.processor)
    token = RewardModel(family.folder, pooling="token", reward_token_id=3)
    assert "pooling: token" in why_no_classifier(token, family.processor)


def test_a_model_that_reads_pictures_is_told(tiny):
    family = tiny("internvl")
    model = RewardModel(family.folder, pooling="last")
    assert "reads pictures" in why_no_classifier(model, family.processor)


def test_a_tokenizer_without_padding_is_told(family, model):
    tokenizer = _tokenizer(family)
    tokenizer.pad_token = None
    assert "no padding token" in why_no_classifier(model, tokenizer)


def test_responses_that_end_with_the_padding_token_are_told(family, model):
    tokenizer = _tokenizer(family)
    tokenizer.pad_token = tokenizer.eos_token
    assert "is the padding token too" in why_no_classifier(model, tokenizer)
    tokenizer.eos_token = None  # the template alone ends with it
    assert "is the padding token too" in why_no_classifier(model, tokenizer)


def test_a_reward_token_that_is_the_padding_token_is_told(family):
    model = RewardModel(family.folder, pooling="last", reward_token_id=family.processor.pad_token_id)
    assert "is the padding token too" in why_no_classifier(model, family.processor)


def test_an_architecture_without_such_a_classifier_is_told(family, tmp_path):
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=304, **size)).save_pretrained(tmp_path)
    model = RewardModel(str(tmp_path), pooling="last")
    assert "no such classifier over BertModel" in why_no_classifier(model, family.processor)
