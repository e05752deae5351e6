# SPDX-License-Identifier: Apache-2.0
"""The text filter of the training code that the authors released."""

from __future__ import annotations

import re

from ixc_lightning.datamodules.filters.base import Filter
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.types import InputError, Record

TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
"""Their ids lie beyond the embedding of the released model."""
LONG_RESPONSE = 500
"""Characters; in a longer response, a word may not be longer than ``LONG_WORD``."""
LONG_WORD = 100
TOO_LONG_WORD = re.compile(rf"\S{{{LONG_WORD + 1},}}")


class ReleasedText(Filter):
    """Drops records with a response that is empty, broken, or holds tokens of the chat template.

    It is the rule of the released InternLM-XComposer2.5-Reward code, which looks at the last message of each
    response: nothing but white space, ``<|im_start|>`` or ``<|im_end|>``, or more than 500 characters with
    more than 100 in a row without white space (addresses, base64, endless repetition). Languages that are
    written without spaces fall under the last part; leave the filter out for them.
    """

    def keep(self, record: Record, encoder: ChatEncoder) -> bool:
        """Whether the last message of every response is such a text; raises on prompts, which have none."""
        responses = [answer for answer in (record.chosen, record.rejected) if answer is not None]
        if not responses and record.messages[-1]["role"] == "assistant":
            responses = [record.messages]
        if not responses:
            raise InputError(
                f"{record.shard}:{record.key}: ReleasedText judges responses, and a prompt has none; "
                "leave it out of data.filters"
            )
        return all(_is_sound(text_of(messages[-1:])) for messages in responses)


def _is_sound(text: str) -> bool:
    if not text.strip() or any(token in text for token in TURN_TOKENS):
        return False
    return len(text) <= LONG_RESPONSE or not TOO_LONG_WORD.search(text)
