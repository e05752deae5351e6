# SPDX-License-Identifier: Apache-2.0
"""How to load an exported folder: Python that a reader of the card can run inside the folder as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ixc_lightning.publishing.redaction import public

READING = ("max_tokens", "video_frames", "response_suffix")
"""Settings of the data that a scorer must share with training."""

SCORER = """\
from ixc_lightning.scoring import Scorer

scorer = Scorer.from_pretrained({folder!r}{reading})
verdict = scorer.compare("What is two plus two?", "It is 4.", "It is 5.")
print(verdict.a, verdict.b, verdict.preferred)
"""
CLASSIFIER = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
judge = AutoModelForSequenceClassification.from_pretrained({folder!r})
conversation = [
    {{"role": "user", "content": "What is two plus two?"}},
    {{"role": "assistant", "content": "It is 4."}},
]
text = tokenizer.apply_chat_template(conversation, tokenize=False){suffix}
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
score = judge(**inputs).logits.item()
print(score)
"""
POLICY = """\
{package}from transformers import {auto}, {reader}

processor = {reader}.from_pretrained({folder!r})
model = {auto}.from_pretrained({folder!r})
conversation = [{{"role": "user", "content": {content}}}]
inputs = processor.apply_chat_template(
    conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=32)
answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)
"""


class Exported(NamedTuple):
    """What an exported folder holds.

    Attributes:
        role: ``reward`` scores, ``policy`` answers.
        folder: as its reader names it: a hub id, or ``.`` for the folder that the card lies in.
        architecture: name of the network's class.
        is_multimodal: whether it takes pictures.
        parameters: how many.
        dtype: of the weights.
        processor: name of its class.
        needs_package: whether transformers knows the architecture only with this package.
        pooling: of a reward model.
        reward_token: that the score is read from, or must end a response.
        score_mean: mean score of the last validation.
        score_std: standard deviation of these scores.
        classifier: class as which ``AutoModelForSequenceClassification`` loads the folder.
        why_no_classifier: why it does not.
    """

    role: Literal["reward", "policy"]
    folder: str
    architecture: str
    is_multimodal: bool
    parameters: int
    dtype: str
    processor: str
    needs_package: bool = False
    pooling: str | None = None
    reward_token: str | None = None
    score_mean: float = 0.0
    score_std: float = 1.0
    classifier: str | None = None
    why_no_classifier: str | None = None

    @property
    def sees(self) -> str:
        """What it takes, for people."""
        return "for text and pictures" if self.is_multimodal else "for text"


def loading_section(exported: Exported, reading: Mapping[str, Any]) -> str:
    """Return the section of the card, with one block of Python for each way to load the folder.

    Args:
        exported: what the folder holds.
        reading: how the data of training were read; a scorer must read in the same way.
    """
    parts = ["## How to load"]
    if exported.folder == ".":
        parts.append("Run inside this folder, or write its path, or its id on the hub, for `.`.")
    if exported.role == "policy":
        return "\n\n".join([*parts, _block(_policy_code(exported))])
    given = {name: reading[name] for name in READING if reading.get(name) not in (None, "")}
    options = "".join(f", {name}={public(value)!r}" for name, value in given.items())
    parts.append(_block(SCORER.format(folder=exported.folder, reading=options)))
    if exported.classifier:
        suffix = given.get("response_suffix", "")
        code = CLASSIFIER.format(folder=exported.folder, suffix=f" + {suffix!r}" if suffix else "")
        parts.append(f"or, with the same score, as `{exported.classifier}` of transformers:")
        parts.append(_block(code))
    elif exported.why_no_classifier:
        parts.append(
            "It does not load as `AutoModelForSequenceClassification` of transformers: "
            f"{exported.why_no_classifier}."
        )
    return "\n\n".join(parts)


def _policy_code(exported: Exported) -> str:
    text = "What is two plus two?"
    return POLICY.format(
        package="import ixc_lightning.models  # makes the architecture known to transformers\n\n"
        if exported.needs_package
        else "",
        auto="AutoModelForImageTextToText" if exported.is_multimodal else "AutoModelForCausalLM",
        reader="AutoProcessor" if exported.is_multimodal else "AutoTokenizer",
        folder=exported.folder,
        content=f'[{{"type": "text", "text": "{text}"}}]' if exported.is_multimodal else f'"{text}"',
    )


def _block(code: str) -> str:
    return f"```python\n{code}```"
