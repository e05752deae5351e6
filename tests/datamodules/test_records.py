# SPDX-License-Identifier: Apache-2.0
"""Validation: each thing that can be wrong with a record has its message, and nothing else escapes."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.datamodules.record_checks import MAX_JSON_BYTES
from ixc_lightning.datamodules.records import FIELDS, Kind, parse_record
from ixc_lightning.types import InputError, Record

MEDIA = {"00.jpg": b"jpeg"}
PAIR = {
    "id": "1",
    "source": "test",
    "domain": "reading",
    "messages": [
        {"role": "user", "content": [{"type": "image", "file": "00.jpg"}, {"type": "text", "text": "Which?"}]}
    ],
    "chosen": "It is 7.",
    "rejected": "It is 1.",
    "margin": 0.5,
    "answer": ["any", {"thing": None}],
}
ASSISTANT = {"role": "assistant", "content": "It is 7."}


def parse(raw, kind=Kind.PREFERENCE, media=MEDIA):
    data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return parse_record(data, media, kind=kind, shard="data/a.tar", key="k1")


def changed(*path, to=None, drop=False):
    """A copy of PAIR in which the place that ``path`` names is another, or is gone."""
    raw = copy.deepcopy(PAIR)
    place = raw
    for step in path[:-1]:
        place = place[step]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return raw


def of_kind(kind):
    raw = {name: value for name, value in PAIR.items() if name not in ("chosen", "rejected", "margin")}
    return raw | {"messages": [*PAIR["messages"], ASSISTANT]} if kind is Kind.INSTRUCTION else raw


def test_a_good_pair_becomes_a_record_with_every_string_a_list_of_parts():
    record = parse(PAIR)
    assert record == Record(
        key="k1",
        shard="data/a.tar",
        source="test",
        domain="reading",
        messages=tuple(PAIR["messages"]),
        chosen=({"role": "assistant", "content": [{"type": "text", "text": "It is 7."}]},),
        rejected=({"role": "assistant", "content": [{"type": "text", "text": "It is 1."}]},),
        margin=0.5,
        answer=["any", {"thing": None}],
        media=MEDIA,
    )
    assert record.modality == "image"


def test_a_response_may_be_messages_and_means_the_same_as_its_string():
    assert parse(changed("chosen", to=[ASSISTANT])) == parse(PAIR)


@pytest.mark.parametrize("kind", [Kind.INSTRUCTION, Kind.PROMPT])
def test_other_kinds_have_no_pair_and_may_write_null_for_it(kind):
    record = parse(of_kind(kind) | {"chosen": None, "margin": None}, kind)
    assert (record.chosen, record.rejected, record.margin) == (None, None, 0.0)
    assert record.messages[-1]["role"] == {"instruction": "assistant", "prompt": "user"}[kind]


def test_a_system_message_may_come_first_and_turns_may_be_many():
    turns = [{"role": "system", "content": "Be brief."}, *PAIR["messages"], ASSISTANT]
    turns.append({"role": "user", "content": "Sure?"})
    record = parse(changed("messages", to=turns))
    assert [message["role"] for message in record.messages] == ["system", "user", "assistant", "user"]


def test_file_names_are_lower_case_as_readers_make_them():
    part = {"type": "image", "file": "00.JPG"}
    record = parse(changed("messages", 0, "content", 0, to=part))
    assert record.messages[0]["content"][0]["file"] == "00.jpg"


def nested(depth):
    return [nested(depth - 1)] if depth else 1


BAD = {
    "bad JSON": (b'{"id": ', "json: not valid JSON", "json.dumps"),
    "deep JSON": (b"[" * 100_000, "json: not valid JSON", "json.dumps"),
    "not UTF-8": (b'{"id": "\xff"}', "json: not UTF-8 (invalid start byte at byte 8)", "save it as UTF-8"),
    "no object": (b"[1]", "json: must be an object", "not a list"),
    "typo": (changed("chosn", to="x"), "chosn: unknown field, did you mean 'chosen'?", "known are id"),
    "no domain": (changed("domain", drop=True), "domain: is missing", "add it"),
    "number id": (changed("id", to=1), "id: must be a string, not a number", ""),
    "blank source": (changed("source", to=" "), "source: is empty", ""),
    "no messages": (changed("messages", drop=True), "messages: is missing", ""),
    "messages string": (
        changed("messages", to="hi"),
        "messages: must be a list of messages, not a string",
        "",
    ),
    "empty messages": (changed("messages", to=[]), "messages: is empty", ""),
    "message string": (changed("messages", 0, to="hi"), "messages[0]: must be an object with role", ""),
    "message field": (changed("messages", 0, "rol", to="x"), "messages[0].rol: unknown field", "'role'"),
    "no role": (changed("messages", 0, "role", drop=True), "messages[0].role: is missing", ""),
    "bad role": (changed("messages", 0, "role", to="usr"), "unknown role 'usr', did you mean 'user'?", ""),
    "no content": (changed("messages", 0, "content", drop=True), "messages[0].content: is missing", ""),
    "content null": (changed("messages", 0, "content", to=None), "string or a list of parts, not null", ""),
    "no parts": (changed("messages", 0, "content", to=[]), "messages[0].content: is empty", ""),
    "blank text": (changed("messages", 0, "content", to=" \n"), "messages[0].content: is empty", ""),
    "part string": (changed("messages", 0, "content", 0, to="x"), "messages[0].content[0]: must be an", ""),
    "no type": (changed("messages", 0, "content", 0, "type", drop=True), "content[0].type: is missing", ""),
    "audio": (
        changed("messages", 0, "content", 0, "type", to="audio"),
        "unknown content type 'audio'",
        "video",
    ),
    "image url": (
        changed("messages", 0, "content", 0, "url", to="x"),
        "content[0].url: unknown field",
        "file",
    ),
    "no file": (changed("messages", 0, "content", 0, "file", drop=True), "content[0].file: is missing", ""),
    "text number": (
        changed("messages", 0, "content", 1, "text", to=3),
        "content[1].text: must be a string",
        "",
    ),
    "surrogate": (changed("messages", 0, "content", 1, "text", to="\ud800"), "half of a surrogate pair", ""),
    "two users": (changed("messages", to=PAIR["messages"] * 2), "messages[1].role: is 'user' where", ""),
    "late system": (
        changed("messages", to=[*PAIR["messages"], {"role": "system", "content": "x"}]),
        "messages[1].role: is 'system' where 'assistant' must come",
        "take turns",
    ),
    "only system": (
        changed("messages", to=[{"role": "system", "content": "x"}]),
        "has no message of the user",
        "",
    ),
    "ends wrong": (
        changed("messages", to=[*PAIR["messages"], ASSISTANT]),
        "messages: ends with a message of",
        "",
    ),
    "system image": (
        changed("messages", 0, "role", to="system"),
        "media inside a message of the system",
        "user",
    ),
    "file absent": (
        changed("messages", 0, "content", 0, "file", to="01.jpg"),
        "messages: names '01.jpg', but the tar holds 00.jpg for this key, did you mean '00.jpg'?",
        "add the member",
    ),
    "file unnamed": (
        changed("messages", 0, "content", to="hi"),
        "00.jpg: is in the tar, but no message",
        "drop",
    ),
    "no chosen": (changed("chosen", drop=True), "chosen: is missing", ""),
    "chosen number": (changed("chosen", to=7), "chosen: must be a string or a list of messages", ""),
    "empty chosen": (changed("chosen", to=""), "chosen[0].content: is empty", ""),
    "blank rejected": (changed("rejected", to=" \t"), "rejected[0].content: is empty", ""),
    "chosen list": (changed("chosen", to=[]), "chosen: is empty", ""),
    "chosen with prompt": (
        changed("chosen", to=[*PAIR["messages"], ASSISTANT]),
        "chosen[0].role: is 'user'",
        "",
    ),
    "chosen ends": (
        changed("chosen", to=[ASSISTANT, {"role": "user", "content": "x"}]),
        "chosen: must end with a message of the assistant",
        "",
    ),
    "response image": (
        changed("chosen", to=[{"role": "assistant", "content": PAIR["messages"][0]["content"]}]),
        "media inside a message of the assistant are not supported",
        "move them",
    ),
    "tie": (changed("rejected", to=PAIR["chosen"]), "rejected: is equal to chosen", "drop the record"),
    "margin word": (changed("margin", to="1"), "margin: must be a number, not a string", ""),
    "margin truth": (changed("margin", to=True), "margin: must be a number, not a truth value", ""),
    "margin NaN": (
        changed("margin", to=float("nan")),
        "margin: must be finite and not negative, not nan",
        "",
    ),
    "margin inf": (
        changed("margin", to=float("inf")),
        "margin: must be finite and not negative, not inf",
        "",
    ),
    "margin huge": (changed("margin", to=10**400), "margin: must be finite", ""),
    "margin endless": (
        b'{"margin": ' + b"9" * 1001 + b"}",
        "json: holds a number of 1,001 digits",
        "drop it",
    ),
    "too long": (
        b" " * (MAX_JSON_BYTES + 1),
        "json: has 16,000,001 bytes, the limit is 16,000,000",
        "drop the",
    ),
    "field twice": (
        b'{"id": "1", "margin": 1, "margin": 2}',
        "json: the field 'margin' comes twice in one object",
        "keep one",
    ),
    "answer NaN": (
        changed("answer", to=[{"x": float("nan")}]),
        "answer: holds nan, which is no JSON",
        "null",
    ),
    "answer inf": (changed("answer", to=float("-inf")), "answer: holds -inf, which is no JSON", "null"),
    "answer huge": (
        json.dumps(PAIR).replace('["any"', "[1e999").encode(),
        "answer: holds inf, which is no JSON",
        "null",
    ),
    "answer surrogate": (changed("answer", to={"\udc00": 1}), "answer: holds half of a surrogate pair", ""),
    "answer deep": (
        changed("answer", to=nested(33)),
        "answer: is nested more than 32 levels deep",
        "flatter",
    ),
    "path": (
        changed("messages", 0, "content", 0, "file", to="../../etc/passwd"),
        "content[0].file: '../../etc/passwd' is a path or an address; media lie in the tar",
        "write 00.jpg",
    ),
    "address": (
        changed("messages", 0, "content", 0, "file", to="https://example.com/00.jpg"),
        "content[0].file: 'https://example.com/00.jpg' is a path or an address",
        "write 00.jpg",
    ),
    "backslash": (
        changed("messages", 0, "content", 0, "file", to="..\\00.jpg"),
        "is a path or an address",
        "00.jpg",
    ),
    "long name": (
        changed("x" * 10_000, to=1),
        "x" * 80 + "…: unknown field; known are",
        "",
    ),
    "odd name": (changed("a\x1b[2J\n", to=1), "a\ufffd[2J\ufffd: unknown field", ""),
    "placeholder": (
        changed("chosen", to="<image>\nIt is 7."),
        "chosen[0].content: holds '<image>', the placeholder of a picture",
        "take it out",
    ),
    "model's placeholder": (
        changed("rejected", to="It is <|vision_start|><|image_pad|>."),
        "rejected[0].content: holds '<|vision_start|>', the placeholder of a picture",
        "take it out",
    ),
    "system placeholder": (
        changed("messages", to=[{"role": "system", "content": "<ImageHere>"}, *PAIR["messages"]]),
        "messages[0].content: holds '<ImageHere>'",
        "take it out",
    ),
    "margin negative": (changed("margin", to=-1), "margin: must be finite and not negative", "swap chosen"),
}


@pytest.mark.parametrize(("raw", "problem", "advice"), BAD.values(), ids=BAD)
def test_each_fault_has_a_message_with_shard_key_field_and_advice(raw, problem, advice):
    with pytest.raises(InputError) as error:
        parse(raw)
    assert str(error.value).startswith("data/a.tar, sample 'k1', ")
    assert problem in str(error.value)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "Write <image> where the picture goes.",
        "```html\n<video>\n <source src='a.mp4'>\n</video>\n```",
        "```xml\n<image>\n</image>\n```",
        "a <| b |> c",
    ],
)
def test_markup_in_a_response_is_no_placeholder(text):
    assert parse(changed("chosen", to=text)).chosen[0]["content"][0]["text"] == text


def test_an_answer_may_be_as_deep_as_the_limit():
    assert parse(changed("answer", to=nested(32))).answer == nested(32)


def test_a_record_of_many_names_twice_is_refused_at_once():
    data = b"{" + b",".join(b'"%d":1' % number for number in range(200_000)) + b',"199999":1}'
    with pytest.raises(InputError, match="the field '199999' comes twice"):
        parse(data)


@pytest.mark.parametrize("kind", [Kind.INSTRUCTION, Kind.PROMPT])
def test_a_pair_read_as_another_kind_is_refused(kind):
    with pytest.raises(InputError, match=rf"chosen: only preference records .* {kind.value} data"):
        parse(of_kind(kind) | {"chosen": "x"}, kind)


def test_an_instruction_must_end_with_its_answer():
    with pytest.raises(
        InputError, match="ends with a message of the user, but the shard is read as instruction"
    ):
        parse(of_kind(Kind.PROMPT), Kind.INSTRUCTION)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "file", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.sampled_from(FIELDS), JSON)
def test_any_value_in_any_field_is_accepted_or_refused_with_its_name(field, value):
    problem = ""
    try:
        parse(PAIR | {field: value})
    except InputError as error:
        problem = str(error)
    assert not problem or field in problem


@given(st.binary(max_size=30))
def test_any_bytes_are_refused_with_one_error(data):
    with pytest.raises(InputError):
        parse(data)
