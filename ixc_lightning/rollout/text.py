# SPDX-License-Identifier: Apache-2.0
"""What a rollout needs of tokenizers: which tokens end a turn, responses as text, whether two agree."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from ixc_lightning.processors import Processor
from ixc_lightning.types import InputError, Responses, Rollout

ANSWER = "Yes."
"""A probe: what a chat template writes behind it ends the assistant's turn."""
STATE = ("truncation", "padding")
"""Parts of a fast tokenizer that say how it was last called, not what it is."""


def stop_tokens(processor: Processor) -> tuple[int, ...]:
    """The tokens that end the assistant's turn: the tokenizer's end, and what the chat template writes there.

    A template may end a turn with a token that is not the tokenizer's end; a policy that was trained with it
    says that one, and would go on for ever if nobody listened for it. Only special tokens count, for plain
    text behind an answer may be said in its midst as well.
    """
    tokenizer = _tokenizer(processor)
    found = {} if tokenizer.eos_token_id is None else {tokenizer.eos_token_id: None}
    behind = tokenizer(_behind_answer(processor), add_special_tokens=False)["input_ids"]
    if behind and behind[0] in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        found[behind[0]] = None
    return tuple(found)


def texts(rollout: Rollout, processor: Processor) -> list[str]:
    """Each response as text, without the stop token, all other special tokens shown."""
    kept = rollout.lengths - rollout.ended.long()
    return [
        _decode(ids[:count].tolist(), processor)
        for ids, count in zip(rollout.responses.ids, kept.tolist(), strict=True)
    ]


def reference_texts(reference: Responses, processor: Processor) -> list[str]:
    """Each reference as text; empty where a record has none."""
    return [
        _decode(ids[mask].tolist(), processor)
        for ids, mask in zip(reference.ids, reference.mask, strict=True)
    ]


def same_tokenizer(first: Processor, second: Processor) -> bool:
    """Whether tokens and pictures of one processor mean the same to a model of the other."""
    return not differences(first, second)


def check_same_tokenizer(policy: Processor, other: Processor, *, role: str, advice: str = "") -> None:
    """Make sure that another role can read the policy's tokens and pictures as they are.

    Args:
        policy: the policy's processor.
        other: the role's own.
        role: its name, for the message.
        advice: what else can be done, for the message.

    Raises:
        InputError: they differ.
    """
    if found := differences(policy, other):
        raise InputError(
            f"the {role} has another {' and another '.join(found)} than the policy, so the policy's tokens "
            f"would mean something else to it: take a {role} that was made from the policy's own base model"
            f"{advice}"
        )


def differences(first: Processor, second: Processor) -> list[str]:
    """What differs, of ``tokenizer``, ``chat template``, ``image processor`` and ``video processor``."""
    one, two = _description(first), _description(second)
    return [name for name in one if one[name] != two[name]]


def _description(processor: Processor) -> dict[str, Any]:
    tokenizer = _tokenizer(processor)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    return {
        "tokenizer": _rules(tokenizer),
        "chat template": template,
        "image processor": _settings(getattr(processor, "image_processor", None)),
        "video processor": _settings(getattr(processor, "video_processor", None)),
    }


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides the ids of a text: the whole pipeline of a fast tokenizer, else its vocabulary."""
    special = tokenizer.special_tokens_map
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__, tokenizer.get_vocab(), special
    rules = json.loads(backend.to_str())
    return {name: value for name, value in rules.items() if name not in STATE}, special


def _settings(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.to_json_string())


def _behind_answer(processor: Processor) -> str:
    """What the chat template writes behind the text of an answer; nothing where there is no template."""
    if not (getattr(processor, "chat_template", None) or _tokenizer(processor).chat_template):
        return ""
    for content in ([{"type": "text", "text": ANSWER}], ANSWER):  # parts, or strings in a text model's
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            text = processor.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template refuses the other form with whatever jinja2 or it raises
            continue
        if text.count(ANSWER) == len(messages):
            return text.rpartition(ANSWER)[2]
    raise InputError(
        "the chat template does not write the assistant's text, so the end of its turn cannot be found: "
        "give sampling.stop_tokens"
    )


def _decode(ids: list[int], processor: Processor) -> str:
    return _tokenizer(processor).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _tokenizer(processor: Processor) -> PreTrainedTokenizerBase:
    return getattr(processor, "tokenizer", processor)
