# SPDX-License-Identifier: Apache-2.0
"""An item as it is scored: the prompt with its media, then all responses; files are read once."""

import pickle

import pytest

from ixc_lightning.datamodules.benchmarks import (
    MMRLHFRewardBenchReader,
    RewardBench2Reader,
    VLRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks import items as items_module
from ixc_lightning.datamodules.benchmarks.items import BenchmarkItems
from ixc_lightning.types import InputError
from tests.datamodules.benchmarks import released


@pytest.fixture
def pictures(tmp_path):
    return BenchmarkItems(VLRewardBenchReader(), str(released.vl_rewardbench(tmp_path)))


def kinds(candidates):
    return [part["type"] for part in candidates.prompt[-1]["content"]]


def said(answer):
    return answer[0]["content"][0]["text"]


def test_the_picture_comes_before_the_question_with_its_own_bytes(pictures):
    one, other = pictures.candidates(0), pictures.candidates(1)
    assert kinds(one) == ["image", "text"]
    assert list(one.record.media) == ["00.jpg"]
    assert list(other.record.media) == ["00.png"]
    assert other.record.media["00.png"].startswith(b"\x89PNG")
    assert one.record.modality == "image"


def test_the_better_responses_come_first_and_are_named(tmp_path, pictures):
    assert [said(answer) for answer in pictures.candidates(1).answers] == [
        "The second answer 1.",
        "The first answer 1.",
    ]
    texts = BenchmarkItems(RewardBench2Reader(), str(released.rewardbench_2(tmp_path / "2")))
    assert texts.candidates(6).names == ["chosen[0]", "chosen[1]", "chosen[2]", "rejected[0]"]


def test_a_record_is_named_by_its_file_and_row(pictures):
    one = pictures.candidates(2)
    assert (one.record.shard, one.record.key) == pictures.place(2)
    assert one.record.shard.endswith("test-00000-of-00001.parquet")
    assert one.record.key == "3"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 7, 7, 2]])
def test_items_may_be_asked_for_in_any_order(pictures, order):
    for number in order:
        assert said(pictures.candidates(number).answers[0]).endswith(f"{number}.")


def test_asked_for_in_their_order_the_files_are_read_once(tmp_path, monkeypatch):
    read, counted = items_module.read_rows, []

    def counting(path, columns=None):
        for row in read(path, columns):
            counted.append(columns)
            yield row

    source = BenchmarkItems(VLRewardBenchReader(), str(released.vl_rewardbench(tmp_path)))
    monkeypatch.setattr(items_module, "read_rows", counting)
    for number in range(len(source)):
        source.candidates(number)
    assert counted == [None] * len(source)


def test_reading_the_texts_leaves_the_pictures_where_they_are(tmp_path, monkeypatch):
    read, columns = items_module.read_rows, []
    monkeypatch.setattr(
        items_module, "read_rows", lambda path, names=None: (columns.append(names), read(path, names))[1]
    )
    BenchmarkItems(VLRewardBenchReader(), str(released.vl_rewardbench(tmp_path)))
    assert all(names is not None and "image" not in names for names in columns)


def test_a_copy_in_another_process_reads_for_itself(pictures):
    pictures.candidates(4)
    copy = pickle.loads(pickle.dumps(pictures))
    assert said(copy.candidates(5).answers[0]).endswith("5.")
    assert said(pictures.candidates(5).answers[0]).endswith("5.")


def test_clips_and_folders_of_frames_are_read(tmp_path):
    source = BenchmarkItems(MMRLHFRewardBenchReader(), str(released.mm_rlhf_rewardbench(tmp_path)))
    modalities = [source.candidates(number).record.modality for number in range(len(source))]
    assert modalities == ["image", "image", "image", "video", "video"]


def test_media_may_lie_elsewhere_and_a_missing_one_is_named(tmp_path):
    folder = released.mm_rlhf_rewardbench(tmp_path / "a")
    file = (folder / "mm_reward_bench.jsonl").rename(tmp_path / "mm_reward_bench.jsonl")
    there = BenchmarkItems(MMRLHFRewardBenchReader(), str(file), media=str(folder))
    assert there.candidates(0).record.media
    nowhere = BenchmarkItems(MMRLHFRewardBenchReader(), str(file))
    with pytest.raises(InputError, match=r"mm_reward_bench\.jsonl, row 1, image: no file 'mcq/0\.jpg'"):
        nowhere.candidates(0)


def test_a_file_that_shrinks_during_the_run_is_an_error(tmp_path):
    folder = released.mm_rlhf_rewardbench(tmp_path)
    source = BenchmarkItems(MMRLHFRewardBenchReader(), str(folder))
    file = folder / "mm_reward_bench.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="has become shorter"):
        source.candidates(3)
