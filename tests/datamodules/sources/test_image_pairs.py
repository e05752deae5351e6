# SPDX-License-Identifier: Apache-2.0
"""The image and video sets: the published schemas with their oddities."""

import json
import zipfile

import pytest

from ixc_lightning.datamodules.media import decode_video
from ixc_lightning.datamodules.sources import (
    llava_critic,
    mia_dpo,
    mm_rlhf,
    mmpr,
    rlaif_v,
    vlfeedback,
    wildvision_battle,
)
from ixc_lightning.datamodules.sources._drafts import Dropped
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import (
    answered,
    asked,
    picture,
    records,
    said,
    shown,
    write_jsonl,
    write_parquet,
)

RED, BLUE = picture("red"), picture("blue", "PNG")
JPG, PNG = ("image", "00.jpg"), ("image", "00.png")


def talk(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def battle(winner, first=("q", "a"), second=("q", "b"), **fields):
    return {
        "question_id": f"w-{winner}",
        "model_a": "a",
        "model_b": "b",
        "conversation_a": talk(*first),
        "conversation_b": talk(*second),
        "language": "English",
        "image": {"bytes": RED, "path": None},
        "turn": len(first) // 2,
        "winner": winner,
        "domain": "x",
    } | fields


LONG = {"first": ("q", "a", "r", "c"), "second": ("q", "b", "r", "d")}


def test_wildvision_keeps_the_winner_and_drops_ties_and_long_dialogues(tmp_path):
    battles = [
        battle("model_a"),
        battle("model_b"),
        battle("tie"),
        battle("tie (bothbad)"),
        battle("model_a", **LONG),
    ]
    source = write_parquet(tmp_path / "w.parquet", *battles)
    report = wildvision_battle.convert(source, str(tmp_path / "out"))
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked(JPG, "q"), answered("a"), answered("b"), "general"),
        (asked(JPG, "q"), answered("b"), answered("a"), "general"),
    ]
    assert report.dropped == {"the vote is a tie": 2, "the dialogue has several turns": 1}
    assert records(tmp_path / "out")[0].media == {"00.jpg": RED}


def test_wildvision_can_score_whole_dialogues(tmp_path):
    source = write_parquet(tmp_path / "w.parquet", battle("model_b", **LONG))
    wildvision_battle.convert(source, str(tmp_path / "out"), multi_turn="keep")
    (record,) = records(tmp_path / "out")
    assert shown(record)[:3] == (
        asked(JPG, "q"),
        (said("assistant", "b"), said("user", "r"), said("assistant", "d")),
        (said("assistant", "a"), said("user", "r"), said("assistant", "c")),
    )


def test_wildvision_names_a_vote_that_it_does_not_know(tmp_path):
    source = write_parquet(tmp_path / "w.parquet", battle("model_c"))
    with pytest.raises(InputError, match=r"w.parquet, row 1, winner: must be model_a, model_b or one of"):
        wildvision_battle.convert(source, str(tmp_path / "out"))


BRACKETS = """<image>
Given an image and a question, judge the responses.
Question: [What is [really] there?]
{0} [A cat] and [a dog
]]
{1} [A [small] cat]
ASSISTANT:"""
ARENA = """<image><|User Prompt|>
What is there?

<|The Start of Assistant A's Answer|>
cat
<|The End of Assistant A's Answer|>

<|The Start of Assistant B's Answer|>
dog
<|The End of Assistant B's Answer|>"""
BENCH = """<image>[Question]
What is there?

[Assistant 1]
cat

[End of Assistant 1]

[Assistant 2]
dog

[End of Assistant 2]

[System] Rate them."""
TAGS = [
    ("Response 1:", "Response 2:"),
    ("Response A:", "Response B:"),
    ("The first response:", "The second response:"),
]


@pytest.mark.parametrize("tags", TAGS)
def test_llava_critic_reads_responses_with_brackets_in_them(tags):
    found = llava_critic.compare(BRACKETS.format(*tags), "… The better response: [2].")
    assert found == ("What is [really] there?", "A cat] and [a dog\n]", "A [small] cat", -1)


@pytest.mark.parametrize(
    ("task", "judgment", "order"),
    [
        (
            BRACKETS.format(*TAGS[0]),
            "The better response: [1] would be short. In all, The better response: [2].",
            -1,
        ),
        (BRACKETS.format(*TAGS[2]), "The second … The better response: [first].", 1),
        (BRACKETS.format(*TAGS[1]), "The better response: [B].", -1),
        (BRACKETS.format(*TAGS[1]), "The better response: A", 1),
        (BRACKETS.format(*TAGS[1]), "Both responses are equally good.", 0),
        (ARENA, "My verdict is [[A>B]]", 1),
        (ARENA, "I first thought [[A>>B]], but [[B>>A]]", -1),
        (ARENA, "[[A=B]]", 0),
        (BENCH, "8 6.5\nThe first is richer.", 1),
        (BENCH, "7 9", -1),
        (BENCH, "7, 7\nsame", 0),
    ],
)
def test_llava_critic_takes_the_last_verdict(task, judgment, order):
    assert llava_critic.compare(task, judgment).order == order


@pytest.mark.parametrize(
    ("task", "judgment", "reason"),
    [
        (BRACKETS.format(*TAGS[0]), "I cannot say.", "the judgment has no verdict"),
        (ARENA, "A is better", "the judgment has no verdict"),
        (BENCH, "The first gets 8, the second 6", "the judgment has no verdict"),
        ("<image>Text Caption: a cat\nFrom 0 to 100, rate it.", "Final Score: 80", "judges one response"),
    ],
)
def test_llava_critic_drops_what_compares_nothing(task, judgment, reason):
    with pytest.raises(Dropped, match=reason):
        llava_critic.compare(task, judgment)


def test_llava_critic_asks_the_question_alone(tmp_path):
    def row(task, judgment):
        turns = [{"from": "human", "value": task}, {"from": "gpt", "value": judgment}]
        return {"id": "c", "source": "s", "conversations": turns, "image": {"bytes": RED, "path": "c.jpg"}}

    rows = [row(ARENA, "[[B>A]]"), row(ARENA, "[[A=B]]"), row("<image>Rate this.", "Final Score: 3")]
    report = llava_critic.convert(write_parquet(tmp_path / "c.parquet", *rows), str(tmp_path / "out"))
    (record,) = records(tmp_path / "out")
    assert shown(record) == (asked(JPG, "What is there?"), answered("dog"), answered("cat"), "general")
    assert report.dropped == {
        "the responses are judged equal": 1,
        "the task judges one response, or is in another form": 1,
    }


ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def rated(response, *ratings):
    annotations = {
        name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(ASPECTS, ratings, strict=True)
    }
    return {"annotations": annotations, "model": "m", "response": response}


COMPLETIONS = [rated("fair", "3", "5", "4"), rated("worst", "1", "5", "1"), rated("best", "5", "N/A", "5")]


def as_lists(completions):
    """The completions as ``datasets`` stores a sequence of structs."""
    return {name: [completion[name] for completion in completions] for name in completions[0]}


def as_lists_of_lists(completions):
    """The same with the annotations taken apart too."""
    annotations = {
        aspect: {"Rating": [completion["annotations"][aspect]["Rating"] for completion in completions]}
        for aspect in ASPECTS
    }
    return as_lists(completions) | {"annotations": annotations}


@pytest.mark.parametrize("shape", [list, as_lists, as_lists_of_lists])
def test_vlfeedback_pairs_best_and_worst_by_the_mean_of_numbers(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "merged_images.zip", "w") as archive:
        archive.writestr("merged_images/1.png", BLUE)
    rows = [
        {
            "id": "1",
            "prompt": "q",
            "models": ["m"],
            "completions": shape(COMPLETIONS),
            "img_path": "merged_images/1.png",
        },
        {
            "id": "2",
            "prompt": "q",
            "completions": shape([rated(c, "3", "3", "3") for c in "ab"]),
            "img_path": "x",
        },
    ]
    source = write_jsonl(tmp_path / "v.jsonl", *rows)
    report = vlfeedback.convert(source, str(tmp_path / "out"), media=str(tmp_path / "merged_images.zip"))
    (record,) = records(tmp_path / "out")
    assert shown(record) == (asked(PNG, "q"), answered("best"), answered("worst"), "general")
    assert record.media == {"00.png": BLUE}
    assert report.dropped == {"the ratings are equal": 1}


def test_vlfeedback_can_pair_all_that_are_far_enough_apart(tmp_path):
    row = {"id": "1", "prompt": "q", "completions": COMPLETIONS, "image": {"bytes": RED}}
    source = write_parquet(tmp_path / "v.parquet", row)
    vlfeedback.convert(source, str(tmp_path / "out"), pairs="all", min_gap=1.0)
    assert [shown(record)[1:3] for record in records(tmp_path / "out")] == [
        (answered("fair"), answered("worst")),
        (answered("best"), answered("fair")),
        (answered("best"), answered("worst")),
    ]


def test_rlaif_v_is_direct(tmp_path):
    row = {
        "ds_name": "RLAIF-V",
        "image": {"bytes": RED, "path": "/their/disk/1.jpg"},
        "question": "Describe it.",
        "chosen": "A red field.",
        "rejected": "A red cat.",
        "origin_dataset": "COCO",
        "origin_split": '{"model": "m"}',
        "idx": "12",
        "image_path": "1.jpg",
    }
    report = rlaif_v.convert(write_parquet(tmp_path / "r.parquet", row), str(tmp_path / "out"))
    (record,) = records(tmp_path / "out")
    expected = (asked(JPG, "Describe it."), answered("A red field."), answered("A red cat."), "hallucination")
    assert shown(record) == expected
    assert report.unknown_fields == {}


def test_mia_dpo_puts_pictures_where_their_placeholders_are(tmp_path):
    for name, data in (("1.jpg", RED), ("2.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    prompt = "Image1: <image-placeholder>\nImage2: <image-placeholder>\nIn Image2, what is there?"
    rows = [
        {
            "id": 1,
            "image": ["1.jpg", "2.png"],
            "prompt": prompt,
            "chosen": "blue",
            "rejected": "red",
            "gt": "blue",
        },
        {"id": 2, "image": "1.jpg", "prompt": "In the collage?", "chosen": "a", "rejected": "b", "gt": "a"},
    ]
    (tmp_path / "mia.json").write_text(json.dumps(rows))
    mia_dpo.convert(str(tmp_path / "mia.json"), str(tmp_path / "out"))
    parts = (
        "Image1: ",
        ("image", "00.jpg"),
        "\nImage2: ",
        ("image", "01.png"),
        "\nIn Image2, what is there?",
    )
    assert [shown(record) for record in records(tmp_path / "out")] == [
        (asked(*parts), answered("blue"), answered("red"), "multi_image"),
        (asked(JPG, "In the collage?"), answered("a"), answered("b"), "multi_image"),
    ]


def test_mm_rlhf_has_pictures_clips_and_folders_of_frames(tmp_path):
    for name, data in (("long/1.jpg", RED), ("video/2.mp4", b"\0\0\0\x20ftypisom" + bytes(20))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "video" / "3").mkdir()
    for number, colour in enumerate(["red", "lime", "blue"]):
        (tmp_path / "video" / "3" / f"{number}.jpg").write_bytes(picture(colour))
    pair = {"chosen": "a", "rejected": "b"}
    rows = [
        {"id": 1, "image": "long/1.jpg", "prompt": "<image>\nq1"} | pair,
        {"id": 2, "video": "video/2.mp4", "prompt": "q2", "image": None} | pair,
        {"id": 3, "video": "video/3", "prompt": "<video>\nq3"} | pair,
    ]
    source = write_jsonl(tmp_path / "dpo_pairs.jsonl", *rows)
    report = mm_rlhf.convert(source, str(tmp_path / "out"), frames_per_second=2)
    found = records(tmp_path / "out")
    assert [shown(record) for record in found] == [
        (asked(JPG, "q1"), answered("a"), answered("b"), "long"),
        (asked(("video", "00.mp4"), "q2"), answered("a"), answered("b"), "video"),
        (asked(("video", "00.avi"), "q3"), answered("a"), answered("b"), "video"),
    ]
    clip = decode_video(found[2].media["00.avi"], frames=3, where="test")
    assert [int(frame.reshape(-1, 3).mean(axis=0).argmax()) for frame in clip.frames] == [0, 1, 2]
    assert report.folders == {"image-jpg": 1, "video-avi": 1, "video-mp4": 1}


@pytest.fixture
def mmpr_folder(tmp_path):
    """MMPR as it lies on a disk: two files of annotations, their pictures, and the list of both."""
    folder = tmp_path / "MMPR-v1.2"
    rows = [
        {"image": "1.jpg", "question": "<image>\nq1", "chosen": "a", "rejected": "b"},
        {"image": ["1.jpg", "sub/2.png"], "question": "<image> <image> q2", "chosen": "a", "rejected": "b"},
        {"image": None, "question": "q3", "chosen": "a", "rejected": "b"},
    ]
    for name in ("geo", "chart.v2"):
        write_jsonl(folder / "annotations" / f"{name}.jsonl", *(rows if name == "geo" else rows[:1]))
        (folder / "images" / name / "sub").mkdir(parents=True)
        (folder / "images" / name / "1.jpg").write_bytes(RED if name == "geo" else picture("lime"))
        (folder / "images" / name / "sub" / "2.png").write_bytes(BLUE)
    meta = {
        name: {
            "root": f"MMPR-v1.2/images/{name}",
            "annotation": f"MMPR-v1.2/annotations/{name}.jsonl",
            "repeat_time": 1.5,
            "length": 3,
        }
        for name in ("geo", "chart.v2")
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_mmpr_reads_the_files_of_its_list_each_with_its_pictures(mmpr_folder, tmp_path):
    report = mmpr.convert(str(mmpr_folder / "meta.json"), str(tmp_path / "out"))
    found = records(tmp_path / "out")
    assert [record.messages for record in found] == [
        asked(JPG, "q1"),
        asked(("image", "00.jpg"), ("image", "01.png"), " q2"),
        asked("q3"),
        asked(JPG, "q1"),
    ]
    assert [record.media.get("00.jpg") for record in found] == [RED, RED, None, picture("lime")]
    assert report.weights == {"geo": 1.5, "chart-v2": 1.5}
    assert report.folders == {
        "chart-v2/image-jpg": 1,
        "geo/image-jpg": 1,
        "geo/images-jpg1-png1": 1,
        "geo/text": 1,
    }


def test_mmpr_reads_one_file_below_the_pictures_that_are_named(mmpr_folder, tmp_path):
    source = str(mmpr_folder / "annotations" / "geo.jsonl")
    report = mmpr.convert(source, str(tmp_path / "out"), media=str(mmpr_folder / "images" / "geo"))
    assert report.folders == {"image-jpg": 1, "images-jpg1-png1": 1, "text": 1}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("[", "meta.json: cannot be read as JSON"),
        ('{"geo": {"root": "x"}}', "meta.json, geo: must have annotation and root"),
        (
            '{"geo": {"root": "/", "annotation": "x"}}',
            "meta.json, geo: '/' leads out of the folder of the set",
        ),
        ('{"geo": {"root": "x", "annotation": "a/../../b"}}', "meta.json, geo: 'a/../../b' leads out"),
        ('{"geo": {"root": "x", "annotation": "MMPR/none.jsonl"}}', "meta.json, geo: no file .*none.jsonl"),
    ],
)
def test_mmpr_names_what_is_wrong_with_its_list(mmpr_folder, tmp_path, meta, message):
    (mmpr_folder / "meta.json").write_text(meta)
    with pytest.raises(InputError, match=message):
        mmpr.convert(str(mmpr_folder / "meta.json"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("module", "fields"),
    [
        (wildvision_battle, ("conversation_a", "conversation_b", "winner", "image")),
        (llava_critic, ("conversations", "image")),
        (vlfeedback, ("prompt", "completions")),
        (rlaif_v, ("image", "question", "chosen", "rejected")),
        (mia_dpo, ("image", "prompt", "chosen", "rejected")),
        (mm_rlhf, ("prompt", "chosen", "rejected")),
        (mmpr, ("question", "chosen", "rejected")),
    ],
)
def test_a_column_that_is_missing_is_named(tmp_path, module, fields):
    for missing in fields:
        row = {name: "x" for name in fields if name != missing}
        source = write_jsonl(tmp_path / "rows.jsonl", row)
        with pytest.raises(
            InputError, match=f"rows.jsonl, row 1, {missing}: is missing; is this the data set"
        ):
            module.convert(source, str(tmp_path / "out"))
