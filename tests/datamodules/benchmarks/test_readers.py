# SPDX-License-Identifier: Apache-2.0
"""Every benchmark's files become its items: groups, better responses first, and one error for a bad row."""

import json

import pytest

from ixc_lightning.datamodules import benchmarks
from ixc_lightning.datamodules.benchmarks import (
    MMRLHFRewardBenchReader,
    MultimodalRewardBenchReader,
    RewardBench2Reader,
    RewardBenchReader,
    RMBenchReader,
    VideoRewardBenchReader,
    VLRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks import rewardbench as reader_rewardbench
from ixc_lightning.datamodules.benchmarks.items import BenchmarkItems
from ixc_lightning.metrics import rewardbench as metric_rewardbench
from ixc_lightning.types import InputError
from tests.datamodules.benchmarks import released
from tests.datamodules.sources.fixtures import write_jsonl, write_parquet

READERS = {
    "vl_rewardbench": VLRewardBenchReader,
    "rewardbench": RewardBenchReader,
    "rewardbench_2": RewardBench2Reader,
    "rm_bench": RMBenchReader,
    "multimodal_rewardbench": MultimodalRewardBenchReader,
    "mm_rlhf_rewardbench": MMRLHFRewardBenchReader,
    "video_rewardbench": VideoRewardBenchReader,
}


def read(reader, path, **options):
    return BenchmarkItems(reader, str(path), **options).items


def asked(items):
    return [one.prompt[-1].text for one in items]


def test_every_exported_reader_is_tried_here():
    names = {name for name in vars(benchmarks) if name.endswith("Reader")} - {"BenchmarkReader"}
    assert names == {reader.__name__ for reader in READERS.values()}
    assert READERS.keys() == released.BENCHMARKS.keys()


@pytest.mark.parametrize("name", READERS)
def test_a_folder_holds_the_benchmark_once(name, tmp_path):
    items = read(READERS[name](), released.BENCHMARKS[name](tmp_path))
    assert len(items) == released.SIZES[name]
    assert len({one.digest for one in items}) == len(items)


def test_vl_rewardbench_maps_ids_to_groups_and_rankings_to_the_better_response(tmp_path):
    items = read(VLRewardBenchReader(), released.vl_rewardbench(tmp_path))
    groups = ["hallucination"] * 3 + ["reasoning"] * 2 + ["general"] * 3
    assert [one.group for one in items] == groups
    assert items[0].chosen == ("The first answer 0.",)
    assert items[1].chosen == ("The second answer 1.",)
    assert items[1].rejected == ("The first answer 1.",)
    assert asked(items)[0] == "What is it?"
    assert asked(items)[3] == "How many?"
    assert [one.id for one in items[-2:]] == ["45000", "45000"]


def test_vl_rewardbench_of_the_authors_maps_folders_to_groups(tmp_path):
    items = read(VLRewardBenchReader(), released.vl_rewardbench_tagged(tmp_path))
    assert [one.group for one in items] == ["general", "hallucination", "reasoning", "general"]
    assert [one.chosen[0] for one in items] == ["One.", "Two.", "One.", "Two."]


def test_rewardbench_takes_the_filtered_split_and_prior_sets_by_the_names_of_their_files(tmp_path):
    core = released.rewardbench(tmp_path / "core")
    prior = released.prior_sets(tmp_path / "prior")
    items = read(RewardBenchReader(prior_sets=str(prior)), core)
    assert [one.group for one in items[:2]] == ["alpacaeval-easy", "llmbar-natural"]
    assert [one.group for one in items[5:]] == ["anthropic_hhh", "shp"]
    assert [turn.role for turn in items[5].prompt] == ["user", "assistant", "user"]
    assert asked(items)[0] == "Question 0: what does <b> mean?"


def test_rewardbench_s_subsets_have_the_same_names_in_reader_and_metric():
    weighted = {subset for tests in metric_rewardbench.SECTIONS.values() for subset in tests}
    assert set(reader_rewardbench.SUBSETS) == weighted
    assert reader_rewardbench.PRIOR_SETS == metric_rewardbench.PRIOR_SETS


def test_rewardbench_2_keeps_all_right_and_wrong_answers(tmp_path):
    items = read(RewardBench2Reader(), released.rewardbench_2(tmp_path))
    assert [one.group for one in items] == [
        "factuality",
        "precise_if",
        "math",
        "safety",
        "focus",
        "ties",
        "ties",
    ]
    assert items[0].rejected == ("Wrong.", "False.", "No.")
    assert (items[6].id, len(items[6].chosen), len(items[6].rejected)) == ("tied:4", 3, 1)


def test_rm_bench_tells_domains_by_the_field_or_by_the_name_of_the_file(tmp_path):
    items = read(RMBenchReader(), released.rm_bench(tmp_path / "all"))
    assert [one.group for one in items] == ["chat", "code", "math", "safety-refuse", "safety-response"]
    assert [len(side) for side in (items[0].chosen, items[0].rejected)] == [3, 3]
    by_domain = read(RMBenchReader(), released.rm_bench_by_domain(tmp_path / "domains"))
    assert [one.group for one in by_domain] == ["code", "safety-refuse"]


def test_multimodal_rewardbench_puts_the_better_output_first_and_splits_two_categories(tmp_path):
    items = read(MultimodalRewardBenchReader(), released.multimodal_rewardbench(tmp_path))
    assert [one.chosen[0] for one in items] == ["One 0.", "Two 1.", "Two 2.", "One 3.", "Two 4.", "One 5."]
    assert [one.subgroup for one in items] == [
        *("safety_bias", "safety_toxicity", "reasoning_math", "reasoning_coding"),
        *("", ""),
    ]
    assert items[4].group == "knowledge"


def test_mm_rlhf_rewardbench_tells_categories_by_paths_and_keeps_ids_of_prompts(tmp_path):
    items = read(MMRLHFRewardBenchReader(), released.mm_rlhf_rewardbench(tmp_path))
    assert [one.group for one in items] == ["mcq", "mcq", "long", "video", "safety"]
    assert [one.id for one in items] == ["p0", "p0", "p1", "p2", "p3"]


def test_video_rewardbench_reads_fields_of_other_names(tmp_path):
    row = {
        "Q": "Why?",
        "good": "So.",
        "bad": "No.",
        "clip": "a.mp4",
        "aspect": "Perception-Long-form",
        "n": 4,
    }
    path = write_jsonl(tmp_path / "x.jsonl", row)
    names = {
        "id": "n",
        "prompt": "Q",
        "video": "clip",
        "chosen": "good",
        "rejected": "bad",
        "category": "aspect",
    }
    (only,) = read(VideoRewardBenchReader(**names), path)
    assert (only.id, only.group, only.chosen, only.rejected) == ("4", "long_perception", ("So.",), ("No.",))


def _spoilt(name, tmp_path, **fields):
    """The benchmark with one field of its second row changed, or taken out where the value is None."""
    file = READERS[name]().files(str(released.BENCHMARKS[name](tmp_path)))[0]
    if file.suffix == ".parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(file).to_pylist()
    else:
        text = file.read_text()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    rows[1] = {key: value for key, value in (rows[1] | fields).items() if value is not None}
    if file.suffix == ".parquet":
        write_parquet(file, *rows)
    else:
        write_jsonl(file, *rows)
    return file


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("vl_rewardbench", {"human_ranking": [0, 0]}, r"human_ranking: must be \[0, 1\] or \[1, 0\]"),
        ("vl_rewardbench", {"response": ["one"]}, "response: must hold 2 responses, not 1"),
        ("vl_rewardbench", {"query": None}, "query: is missing"),
        ("rewardbench", {"subset": None}, "subset: is missing"),
        ("rewardbench", {"subset": "poems"}, "subset: 'poems' is none of"),
        ("rewardbench", {"prompt": None}, "prompt: is missing"),
        ("rewardbench_2", {"subset": "Style"}, "subset: 'Style' is none of"),
        ("rewardbench_2", {"subset": "Ties"}, "id: '1' must be ref:N or tied:N"),
        ("rewardbench_2", {"num_correct": 2}, "chosen: must hold 2 responses, not 1"),
        ("rm_bench", {"domain": "music"}, "domain: 'music' is none of chat, code"),
        ("rm_bench", {"chosen": ["a", "b"]}, "chosen: must hold 3 responses, not 2"),
        ("rm_bench", {"chosen": ["a", "b", 3]}, "chosen: must be a list of texts"),
        ("multimodal_rewardbench", {"Better": "2"}, "Better: must be Output1 or Output2, not '2'"),
        ("mm_rlhf_rewardbench", {"image": "x/0.jpg"}, "image: 'x/0.jpg' names none of the categories"),
        ("video_rewardbench", {"category": "Style"}, "category: 'Style' is none of"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_field(name, fields, said, tmp_path):
    file = _spoilt(name, tmp_path, **fields)
    with pytest.raises(InputError, match=rf"{file.name}, row 2, {said}"):
        read(READERS[name](), file)


def test_an_unknown_folder_of_the_authors_file_is_an_error(tmp_path):
    path = released.vl_rewardbench_tagged(tmp_path) / "combined_data_tagged.jsonl"
    path.write_text(path.read_text().replace("povid", "elsewhere"))
    with pytest.raises(InputError, match=r"image_path: 'images/elsewhere/1\.jpg' names none of"):
        read(VLRewardBenchReader(), path)


def test_an_empty_folder_and_an_empty_file_are_errors(tmp_path):
    with pytest.raises(InputError, match="holds no file"):
        read(RMBenchReader(), tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        read(RMBenchReader(), tmp_path / "nowhere.json")
    (tmp_path / "total_dataset.json").write_text("[]")
    with pytest.raises(InputError, match="holds no item"):
        read(RMBenchReader(), tmp_path)


def test_a_hub_id_asks_the_hub_for_the_benchmark_s_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"hf://datasets/allenai/reward-bench/\*filtered\*.parquet"):
        read(RewardBenchReader(), "allenai/reward-bench")


def test_the_digest_depends_on_texts_and_not_on_the_place(tmp_path):
    first = read(RMBenchReader(), released.rm_bench(tmp_path))
    records = json.loads((tmp_path / "total_dataset.json").read_text())
    (tmp_path / "total_dataset.json").write_text(json.dumps(records[::-1]))
    again = read(RMBenchReader(), tmp_path)
    assert [one.digest for one in again] == [one.digest for one in first][::-1]
    assert first[0]._replace(chosen=("Yes!", *first[0].chosen[1:])).digest != first[0].digest
