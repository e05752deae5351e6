# SPDX-License-Identifier: Apache-2.0
"""The text sets of the paper's Table 1, and Skywork's: the published schemas with their oddities."""

import gzip
import json

import pytest

from ixc_lightning.datamodules.sources import (
    hh_rlhf,
    hhh,
    pku_saferlhf,
    shp,
    skywork_preference,
    tulu_3_if,
    ultrafeedback,
)
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import (
    answered,
    asked,
    records,
    said,
    shown,
    write_jsonl,
    write_parquet,
)


def talk(*texts, system=None):
    """A conversation as most sets hold it, with the keys in the order of the hub."""
    turns = [{"content": text, "role": ("user", "assistant")[place % 2]} for place, text in enumerate(texts)]
    return [{"content": system, "role": "system"}] * (system is not None) + turns


TULU = [
    {"id": "t1", "prompt": "q", "chosen": talk("q", "a"), "rejected": talk("q", "b"), "chosen_model": "m"},
    {"id": "t2", "prompt": "q", "chosen": talk("q", "a", "r", "c"), "rejected": talk("q", "a", "r", "d")},
    {"id": "t3", "prompt": "q", "chosen": talk("q", "a", system="s"), "rejected": talk("q", "b", system="s")},
    {"id": "t4", "prompt": "q", "chosen": talk("q", "a"), "rejected": talk("other", "b")},
    {"id": "t5", "prompt": "q", "chosen": talk("q", "a"), "rejected": talk("q", "a")},
    {"id": "t6", "prompt": "q", "chosen": talk("q", "a", "r", "c"), "rejected": talk("q", "b", "r", "c")},
]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_tulu_takes_the_last_message_of_equal_conversations(tmp_path, write):
    suffix = "parquet" if write is write_parquet else "jsonl"
    report = tulu_3_if.convert(write(tmp_path / f"t.{suffix}", *TULU), str(tmp_path / "out"))
    assert [shown(record)[:3] for record in records(tmp_path / "out")] == [
        (asked("q"), answered("a"), answered("b")),
        ((said("user", "q"), said("assistant", "a"), said("user", "r")), answered("c"), answered("d")),
        ((said("system", "s"), said("user", "q")), answered("a"), answered("b")),
    ]
    assert report.dropped == {
        "the conversations share no prompt": 1,
        "the responses are equal": 1,
        "the conversations differ before the last response": 1,
    }
    assert report.unknown_fields == {}


def test_skywork_names_its_sources_as_domains(tmp_path):
    rows = [
        {"chosen": talk("q", "a"), "rejected": talk("q", "b"), "source": "offsetbias"},
        {"chosen": talk("q", "c"), "rejected": talk("q", "d"), "source": None},
    ]
    skywork_preference.convert(write_parquet(tmp_path / "s.parquet", *rows), str(tmp_path / "out"))
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked("q"), answered("a"), answered("b"), "offsetbias"),
        (asked("q"), answered("c"), answered("d"), "general"),
    ]


def binarized(chosen, rejected, names=("score_chosen", "score_rejected")):
    return {
        "prompt": "q",
        "prompt_id": f"{chosen}",
        "chosen": talk("q", f"good {chosen}"),
        "rejected": talk("q", f"bad {rejected}"),
        "messages": talk("q", f"good {chosen}"),
        names[0]: chosen,
        names[1]: rejected,
    }


@pytest.mark.parametrize(
    "names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")], ids=["H4", "argilla"]
)
def test_binarized_ultrafeedback_needs_a_higher_score(tmp_path, names):
    scores = [(9.0, 2.0), (7.0, 7.0), (3.0, 4.0), (8.0, 7.5), (8.0, None)]
    source = write_parquet(tmp_path / "u.parquet", *(binarized(*pair, names) for pair in scores))
    report = ultrafeedback.convert(source, str(tmp_path / "out"), min_gap=1.0)
    (record,) = records(tmp_path / "out")
    assert shown(record)[:3] == (asked("q"), answered("good 9.0"), answered("bad 2.0"))
    assert report.dropped == {
        "the chosen response is not rated higher": 2,
        "the ratings are too close": 1,
        "a rating is missing": 1,
    }


def completion(response, *ratings, overall=1.0):
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(aspects, ratings, strict=True)
    }
    return {"model": "m", "response": response, "annotations": annotations, "overall_score": overall}


def test_rated_ultrafeedback_takes_the_best_and_a_lower_one_by_aspects(tmp_path):
    def row(prompt, *completions):
        return {"source": "evol", "instruction": prompt, "models": [], "completions": list(completions)}

    rows = [
        # The overall score of the worst one is the known slip of 10 for 1.
        row(
            "q",
            completion("worst", "1", "1", "2", "1", overall=10.0),
            completion("best", "5", "N/A", "5", "4"),
            completion("as good", "5", "N/A", "4", "5"),
        ),
        row("even", completion("a", "3", "3", "3", "3"), completion("b", "3", "3", "3", "N/A")),
        row("alone", completion("a", "3", "3", "3", "3"), completion("b", "N/A", "N/A", "N/A", "N/A")),
    ]
    report = ultrafeedback.convert(write_jsonl(tmp_path / "u.jsonl", *rows), str(tmp_path / "out"))
    (record,) = records(tmp_path / "out")
    assert shown(record)[:3] == (asked("q"), answered("best"), answered("worst"))
    assert report.dropped == {"the ratings are equal": 1, "fewer than two responses have ratings": 1}


def test_another_seed_rejects_other_responses_and_the_same_one_the_same(tmp_path):
    answers = [completion(f"r{rating}", *[str(rating)] * 4) for rating in range(1, 6)]
    rows = [{"instruction": f"q{n}", "completions": answers} for n in range(20)]
    source = write_jsonl(tmp_path / "u.jsonl", *rows)

    def rejected(name, seed):
        ultrafeedback.convert(source, str(tmp_path / name), seed=seed)
        return [record.rejected for record in records(tmp_path / name)]

    first = rejected("a", 0)
    assert rejected("b", 0) == first
    assert rejected("c", 1) != first
    assert len({json.dumps(response) for response in first}) == 4


def test_hhh_chooses_label_one_and_reads_dialogues(tmp_path):
    rows = [
        {"input": "Is it red?", "targets": {"choices": ["yes", "no"], "labels": [0, 1]}},
        {
            "input": "Hi\n\nAssistant: Hello\n\nHuman: Bye",
            "targets": {"choices": ["bye", "?"], "labels": [1, 0]},
        },
        {"input": "\n\nHuman: Hi\n\nAssistant:", "targets": {"choices": ["hello", "?"], "labels": [1, 0]}},
    ]
    hhh.convert(write_parquet(tmp_path / "honest" / "test.parquet", *rows), str(tmp_path / "out"))
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked("Is it red?"), answered("no"), answered("yes"), "honest"),
        (
            (said("user", "Hi"), said("assistant", "Hello"), said("user", "Bye")),
            answered("bye"),
            answered("?"),
            "honest",
        ),
        (asked("Hi"), answered("hello"), answered("?"), "honest"),
    ]


@pytest.mark.parametrize(
    "targets",
    [
        {"choices": ["a", "b"], "labels": [1, 1]},
        {"choices": ["a"], "labels": [1]},
        {"choices": None},
        3,
        {"choices": ["a", 2], "labels": [1, 0]},
    ],
)
def test_hhh_names_targets_that_are_no_comparison(tmp_path, targets):
    source = write_jsonl(tmp_path / "h.jsonl", {"input": "q", "targets": targets})
    with pytest.raises(InputError, match=r"h.jsonl, row 1, targets: must have two choices"):
        hhh.convert(source, str(tmp_path / "out"))


def safe(better, safer, safe_0, safe_1):
    return {
        "prompt": f"q{better}{safer}{int(safe_0)}{int(safe_1)}",
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": safe_0,
        "is_response_1_safe": safe_1,
        "better_response_id": better,
        "safer_response_id": safer,
        "prompt_source": "s",
        "response_0_severity_level": 0,
        "response_0_harm_category": {"Cybercrime": False},
    }


PKU = [safe(0, 0, True, True), safe(1, 0, True, False), safe(1, 0, True, True), safe(0, 1, False, False)]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("safer", [("q0011", "zero", "one"), ("q1010", "zero", "one")]),
        (
            "better",
            [
                ("q0011", "zero", "one"),
                ("q1010", "one", "zero"),
                ("q1011", "one", "zero"),
                ("q0100", "zero", "one"),
            ],
        ),
    ],
)
def test_pku_follows_the_label_that_is_asked_for(tmp_path, label, expected):
    source = write_jsonl(tmp_path / "p.jsonl", *PKU)
    report = pku_saferlhf.convert(source, str(tmp_path / "out"), label=label)
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked(prompt), answered(chosen), answered(rejected), "safety")
        for prompt, chosen, rejected in expected
    ]
    assert sum(report.dropped.values()) == len(PKU) - len(expected)
    assert report.settings == {"label": label}


def test_pku_names_an_id_that_is_none(tmp_path):
    source = write_jsonl(tmp_path / "p.jsonl", PKU[0] | {"safer_response_id": -1})
    with pytest.raises(InputError, match=r"p.jsonl, row 1, safer_response_id: must be one of 0, 1, not -1"):
        pku_saferlhf.convert(source, str(tmp_path / "out"))


def post(number, labels, ratio, name="p1"):
    return {
        "post_id": name,
        "domain": "askacademia_train",
        "history": f"post {number}",
        "human_ref_A": "A",
        "human_ref_B": "B",
        "labels": labels,
        "score_ratio": ratio,
        "score_A": 10,
        "c_root_id_A": "x",
    }


def test_shp_keeps_clear_votes_and_few_pairs_of_a_post(tmp_path):
    rows = [
        post(0, 1, 1.9),
        *(post(number, number % 2, 2.0) for number in range(1, 5)),
        post(9, 1, 8.5, "p2"),
    ]
    source = write_jsonl(tmp_path / "askacademia" / "train.json", *rows)
    report = shp.convert(source, str(tmp_path / "out"), max_pairs_per_post=3)
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked("post 1"), answered("A"), answered("B"), "askacademia"),
        (asked("post 2"), answered("B"), answered("A"), "askacademia"),
        (asked("post 3"), answered("A"), answered("B"), "askacademia"),
        (asked("post 9"), answered("A"), answered("B"), "askacademia"),
    ]
    assert report.dropped == {"the votes are too close": 1, "the post has enough pairs": 1}


def test_hh_rlhf_parses_transcripts_of_its_folders_but_the_red_team(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    rows = [
        {"chosen": f"{start} So long", "rejected": f"{start} ?"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        {"chosen": f"{start} x", "rejected": "\n\nHuman: Hi\n\nAssistant: No\n\nHuman: Bye\n\nAssistant: x"},
        {"chosen": "\n\nHuman: a\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"chosen": f"{start}", "rejected": f"{start} x"},
        {"chosen": f"{start} x\n\nHuman: y", "rejected": f"{start} x"},
    ]
    folder = tmp_path / "hh-rlhf"
    for name in ("harmless-base", "helpful-online", "red-team-attempts"):
        (folder / name).mkdir(parents=True)
        with gzip.open(folder / name / "train.jsonl.gz", "wt") as stream:
            content = rows if name == "harmless-base" else rows[:1]
            stream.writelines(json.dumps(row if name[0] == "h" else {"task": 1}) + "\n" for row in content)
    report = hh_rlhf.convert(str(folder), str(tmp_path / "out"))
    messages = (said("user", "Hi"), said("assistant", "Hello"), said("user", "Bye"))
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (messages, answered("So long"), answered("?"), "harmless"),
        (messages, answered("So long"), answered("?"), "helpful"),
    ]
    assert (report.rows, report.dropped) == (
        7,
        {
            "the conversations share no prompt": 1,
            "the conversations differ before the last response": 1,
            "the speakers do not take turns": 1,
            "a response is empty": 1,
            "a conversation does not end with the assistant": 1,
        },
    )
