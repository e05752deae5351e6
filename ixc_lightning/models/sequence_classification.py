# SPDX-License-Identifier: Apache-2.0
"""A text reward model as the sequence classifier that transformers, and servers of models, know."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_layers import GenericForSequenceClassification

from ixc_lightning.models.reward_model import RewardModel

PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def why_no_classifier(model: RewardModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> str | None:
    """Say why a reward model cannot be a classifier of transformers with the same scores; None if it can.

    transformers' classifiers of decoders score the last token that is not the padding token. That is
    ``pooling: last`` for a text model, as long as no response ends with the padding token.

    Args:
        model: the reward model.
        processor: that the model was trained with.
    """
    if model.backbone.is_multimodal:
        return "it reads pictures, and transformers' classifiers read text alone"
    if model.pooling != "last":
        where = "mean over all tokens" if model.pooling == "mean" else "state of the reward token"
        return f"its score is read from the {where} (pooling: {model.pooling}), theirs from the last token"
    if not isinstance(processor, PreTrainedTokenizerBase) or processor.pad_token_id is None:
        return "its tokenizer has no padding token, by which theirs find the last token of a row"
    if processor.pad_token_id in _last_tokens(model, processor):
        return (
            f"responses end with {processor.pad_token!r}, which is the padding token too, so theirs would "
            "read another token"
        )
    if _classifier(model) is None:
        return f"transformers has no such classifier over {type(model.backbone.model).__name__}"
    return None


def save_classifier(model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> str:
    """Write a reward model so that ``AutoModelForSequenceClassification`` loads it as well.

    The weights are written once, under the classifier's names, from which ``RewardModel`` and ``AutoModel``
    load them too. The config says that there is one label and no activation behind it.

    Args:
        model: one that ``why_no_classifier`` has nothing against.
        tokenizer: names the padding token.
        folder: made if it does not exist.

    Returns:
        The name of the classifier's class.
    """
    network = model.backbone.model
    config = copy.deepcopy(network.config)
    config.num_labels, config.problem_type = 1, "regression"
    config.pad_token_id = tokenizer.pad_token_id
    kind = _classifier(model)
    assert kind is not None
    with torch.device("meta"):
        classifier = kind(config)
    setattr(classifier, classifier.base_model_prefix, network)
    classifier.score = model.score
    classifier.save_pretrained(folder)
    model.save_settings(folder)
    return kind.__name__


def _classifier(model: RewardModel) -> type[PreTrainedModel] | None:
    """The class, if it finds the last token in the way that all these share."""
    kind = AutoModelForSequenceClassification._model_mapping.get(type(model.backbone.config), None)
    return kind if kind is not None and issubclass(kind, GenericForSequenceClassification) else None


def _last_tokens(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """Tokens that a response may end with."""
    ends = {model.reward_token_id, tokenizer.eos_token_id}
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(PROBE, tokenize=False)
        ends.add(tokenizer(text, add_special_tokens=False)["input_ids"][-1])
    return ends
