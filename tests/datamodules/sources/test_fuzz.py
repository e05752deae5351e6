# SPDX-License-Identifier: Apache-2.0
"""Whatever a row holds, a converter writes readable records or names the row; nothing else escapes."""

import copy
import json
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixc_lightning.datamodules import sources
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import records
from tests.datamodules.sources.test_commands import CONVERTERS

PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
CHAT = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]
OTHER = [CHAT[0], {"role": "assistant", "content": "b"}]
TEXTS = {"chosen": "a", "rejected": "b"}
RATED = [
    {"response": text, "annotations": {"Helpfulness": {"Rating": rating}, "Honesty": {"Rating": "3"}}}
    for text, rating in (("a", "1"), ("b", "5"), ("c", "N/A"))
]
GOOD = {
    "hh_rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "hhh": {"input": "q", "targets": {"choices": ["a", "b"], "labels": [0, 1]}},
    "instructions": {"conversations": CHAT, "images": [PICTURE], "id": 3},
    "ixc": {
        "conversations_a": [{"from": "human", "value": "<ImageHere>q"}, {"from": "bot", "value": "a"}],
        "conversations_b": [{"from": "human", "value": "<ImageHere>q"}, {"from": "bot", "value": "b"}],
        "image": [PICTURE],
    },
    "llava_critic": {
        "conversations": [
            {"from": "human", "value": "Question: [q]\nResponse 1: [a]\nResponse 2: [b]"},
            {"from": "gpt", "value": "The better response: [1]"},
        ],
        "image": {"bytes": None, "path": PICTURE},
    },
    "mia_dpo": {"image": [PICTURE], "prompt": "<image-placeholder> q", **TEXTS},
    "mm_rlhf": {"video": None, "image": PICTURE, "prompt": "q", **TEXTS},
    "mmpr": {"image": [PICTURE, PICTURE], "question": "<image><image>q", **TEXTS},
    "pku_saferlhf": {
        **{"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        **{"is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0},
    },
    "rlaif_v": {"image": {"path": PICTURE}, "question": "q", "idx": "1", **TEXTS},
    "shp": {
        **{"post_id": "p", "domain": "x_train", "history": "q", "human_ref_A": "a", "human_ref_B": "b"},
        **{"labels": 1, "score_ratio": 3.5},
    },
    "skywork_preference": {"chosen": CHAT, "rejected": OTHER, "source": "s"},
    "trl": {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": OTHER[1:], "images": [PICTURE]},
    "tulu_3_if": {"chosen": CHAT, "rejected": OTHER},
    "ultrafeedback": {"instruction": "q", "completions": RATED},
    "vlfeedback": {"prompt": "q", "completions": RATED, "img_path": PICTURE},
    "wildvision_battle": {
        **{"conversation_a": CHAT, "conversation_b": OTHER, "winner": "model_b", "image": {"path": PICTURE}},
    },
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2) | st.just(10**400),
    st.floats(allow_nan=True),
    st.sampled_from(["", " ", "q", "a", "b", "1", "user", "gpt", "model_a", "../x", "\ud800", "\0", PICTURE]),
)
KEYS = [
    "role",
    "from",
    "content",
    "value",
    "type",
    "text",
    "bytes",
    "path",
    "response",
    "annotations",
    "user",
]
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """Every place inside ``value``, as the steps that lead there."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from places(inner, (*path, step))


@st.composite
def spoiled(draw, row):
    """A copy of ``row`` in which one or two places hold something else, or are gone."""
    row = copy.deepcopy(row)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(sorted(places(row), key=repr)))
        place = row
        for step in way:
            place = place[step]
        if isinstance(place, dict) and draw(st.booleans()):
            del place[last]
        else:
            place[last] = draw(VALUES)
        if not row:
            break
    return row


def outcome(converter, folder, policy):
    """The report of a conversion, or the message of its error."""
    try:
        return converter.convert(str(folder / "rows.jsonl"), str(folder / policy), on_bad_row=policy), ""
    except InputError as error:
        return None, str(error)


def test_every_converter_has_a_row_to_spoil():
    assert sorted(GOOD) == CONVERTERS


@pytest.mark.parametrize("examples", [4, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONVERTERS)
def test_a_spoiled_row_ends_in_records_or_in_a_message_that_names_it(name, examples, tmp_path_factory):
    converter = import_module(f"{sources.__name__}.{name}")
    kind = "instruction" if name == "instructions" else "preference"

    @settings(max_examples=examples)
    @given(spoiled(GOOD[name]))
    def check(row):
        folder = tmp_path_factory.mktemp("fuzz")
        (folder / "rows.jsonl").write_text(f"{json.dumps(GOOD[name])}\n{json.dumps(row)}\n")
        for policy in ("raise", "drop"):
            report, message = outcome(converter, folder, policy)
            if report is None:
                assert (policy, f"{folder}/rows.jsonl" in message, "row 2" in message) == (
                    "raise",
                    True,
                    True,
                )
            else:
                assert len(records(folder / policy, kind)) == report.records >= 1

    check()
