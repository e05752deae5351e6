# SPDX-License-Identifier: Apache-2.0
"""Every record is answered once, by whatever rank and run, and its pairs are records that training reads."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from ixc_lightning.datamodules import PairMakingDataModule, PreferenceDataModule
from ixc_lightning.datamodules.pair_making import ReferencedPrompts, Remaining, RemainingBatches
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.digits import FRAMES, HELDOUT

BAD = {4, 5}
RANKS = 2


def _record(n):
    content = [{"type": "image", "file": "00.png"}] if n in BAD else []
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": f"what is {n}?"}]}]
    return {"id": f"i{n}", "source": "s", "domain": "d", "answer": str(n), "messages": turns}


@pytest.fixture
def shards(tmp_path):
    """Eleven prompts, two of which have a picture that is none."""
    samples = [Sample(f"{n:03d}", _record(n), {"00.png": b"no"} if n in BAD else {}) for n in range(11)]
    write_shards(samples, tmp_path / "prompts", kind="prompt", samples_per_shard=4)
    return tmp_path / "prompts"


def _data(shards, folder, **options):
    data = PairMakingDataModule(str(folder), predict=str(shards), video_frames=FRAMES, **options)
    data.setup("predict")
    return data


def _batches(shards, folder, rank, todo, *, keeps_going=True):
    records = SampleShards(str(shards), kind=Kind.PROMPT)
    collator = ReferencedPrompts.__mro__[1](ChatEncoder(str(folder)), records.domains)
    return RemainingBatches(
        records,
        Remaining(np.array(todo)),
        collator,
        batch_size=2,
        rank=rank,
        world_size=RANKS,
        keeps_going=keeps_going,
    )


def _keys(batch):
    return [key[-3:] for key, real in zip(batch.keys, batch.real.tolist(), strict=True) if real]


def test_the_ranks_take_what_remains_once_and_make_equally_many_steps(shards, tiny_folder):
    todo = [0, 2, 3, 4, 7, 9, 10]
    ranks = [_batches(shards, tiny_folder, rank, todo) for rank in range(RANKS)]
    assert {len(batches) for batches in ranks} == {2}
    every = [batches[step * 4] for batches in ranks for step in range(2)]
    assert sorted(key for batch in every for key in _keys(batch)) == [
        "000",
        "002",
        "003",
        "007",
        "009",
        "010",
    ]
    assert [bad[0] for batch in every for bad in batch.bad] == ["004"]


def test_a_slice_of_bad_records_is_filled_from_all(shards, tiny_folder):
    batch = _batches(shards, tiny_folder, 0, [4, 5])[0]
    assert batch.real.tolist() == [False]
    assert [bad[0] for bad in batch.bad] == ["004", "005"]


def test_rows_are_those_of_the_records_though_some_are_bad(shards, tiny_folder):
    data = _data(shards, tiny_folder, batch_size=4, on_bad_sample="quarantine")
    data.leave_out(np.array([0, 3]))
    found = [data.rows(batch, step) for step, batch in enumerate(data.predict_dataloader())]
    assert found == [([1, 2], [4, 5]), ([6, 7, 8, 9], []), ([10], [])]


def test_a_bad_record_ends_the_run_unless_it_is_to_be_counted(shards, tiny_folder):
    with pytest.raises(InputError, match=r"004.*cannot be decoded"):
        list(_data(shards, tiny_folder).predict_dataloader())


def test_when_all_is_answered_nothing_comes(shards, tiny_folder):
    data = _data(shards, tiny_folder)
    data.leave_out(np.arange(11))
    assert list(data.predict_dataloader()) == []


def test_a_limit_takes_the_first_records_and_a_higher_one_goes_on(shards, tiny_folder):
    data = _data(shards, tiny_folder, limit=3)
    assert len(data) == 3
    assert [_keys(batch) for batch in data.predict_dataloader()] == [["000", "001", "002"]]
    more = _data(shards, tiny_folder, limit=4)
    more.leave_out(np.arange(3))
    assert [_keys(batch) for batch in more.predict_dataloader()] == [["003"]]
    assert more.fingerprint == data.fingerprint


def test_the_fingerprint_tells_data_apart(shards, tiny_folder, digits):
    prints = {
        _data(shards, tiny_folder).fingerprint,
        _data(digits / "prompt/heldout", tiny_folder).fingerprint,
        _data(digits / "instruction/heldout", tiny_folder, kind="instruction").fingerprint,
    }
    assert len(prints) == 3


def test_the_last_turn_of_an_instruction_is_its_reference(digits, tiny_folder):
    data = _data(digits / "instruction/heldout", tiny_folder, kind="instruction")
    records = ShardDataset(str(digits / "instruction/heldout"), kind="instruction")
    batch = next(iter(data.predict_dataloader()))
    tokenizer = data.encoder.tokenizer
    for row in range(len(batch.keys)):
        said = text_of(records[row].messages[-1:])
        assert data.reference(row) == said
        assert tokenizer.decode(batch.reference.ids[row][batch.reference.mask[row]]) == said
        assert batch.answers[row] == records[row].answer
    prompts = [
        tokenizer.decode(ids[mask]) for ids, mask in zip(batch.prompts.ids, batch.prompts.mask, strict=True)
    ]
    assert not any(
        data.reference(row) in prompt for row, prompt in enumerate(prompts) if len(data.reference(row)) > 8
    )


def test_a_prompt_has_no_reference(shards, tiny_folder):
    assert _data(shards, tiny_folder).reference(0) is None


def _entry(row, pairs, texts=("right", "wrong", " ")):
    candidates = [
        {"response": text, "from": "sample", "tokens": 2, "ended": True, "score": 1.0} for text in texts
    ]
    return {
        "row": row,
        "key": f"k{row}",
        "seed": 5,
        "candidates": candidates,
        "pairs": [{"chosen": c, "rejected": r, "gap": 1.0} for c, r in pairs],
        "counts": Counter({"responses": 3}),
        "left_out": Counter({"why": 1}),
    }


@pytest.mark.parametrize("kind", ["prompt", "instruction"])
def test_pairs_are_records_of_the_same_prompt_with_the_original_media(kind, digits, tiny_folder, tmp_path):
    shards = digits / kind / "heldout"
    data = _data(shards, tiny_folder, kind=kind)
    made = [_entry(row, [(0, 1)]) for row in range(len(data))]
    report = data.write_pairs(tmp_path / "pairs", made, summary=lambda: {"policy": "p"})
    assert report["counts"]["pairs"] == len(data)
    written = ShardDataset(str(tmp_path / "pairs/preference"), kind="preference")
    sources = ShardDataset(str(shards), kind=kind)
    for row, pair in enumerate(written):
        source = sources[row]
        assert pair.messages == (source.messages[:-1] if kind == "instruction" else source.messages)
        assert pair.media == source.media
        assert (text_of(pair.chosen), text_of(pair.rejected)) == ("right", "wrong")
        assert (pair.domain, pair.source, pair.answer) == (source.domain, source.source, source.answer)
    assert {record.modality for record in written} == {"text", "image", "multi_image", "video"}


def test_pairs_keep_the_id_of_their_record(shards, tiny_folder, tmp_path):
    data = _data(shards, tiny_folder)
    data.write_pairs(tmp_path / "pairs", [_entry(3, [(0, 1)])], summary=dict)
    pairs = SampleShards(str(tmp_path / "pairs/preference"), kind=Kind.PREFERENCE)
    assert pairs.sample(0).record["id"] == "i3"


def test_each_pair_has_a_line_of_provenance_and_everything_is_counted(shards, tiny_folder, tmp_path):
    data = _data(shards, tiny_folder)
    made = [_entry(0, [(0, 1), (1, 0)]), _entry(1, [(0, 2)]), _entry(2, [])]
    report = data.write_pairs(tmp_path / "pairs", made, summary=lambda: {"policy": "p"})
    assert report["counts"] == {"prompts": 3, "prompts with a pair": 1, "responses": 9, "pairs": 2}
    assert report["left_out"] == {"why": 3, "a response cannot stand in a record": 1}
    assert report["policy"] == "p"
    assert report["data"] == {"predict": str(shards), "kind": "prompt", "records": 11}
    assert json.loads((tmp_path / "pairs/report.json").read_text()) == report
    lines = [json.loads(line) for line in (tmp_path / "pairs/provenance.jsonl").read_text().splitlines()]
    assert [(line["key"], line["prompt"], line["seed"]) for line in lines] == [
        ("00000000", "k0", 5),
        ("00000001", "k0", 5),
    ]
    assert lines[1]["chosen"]["response"] == lines[0]["rejected"]["response"] == "wrong"


def test_the_same_pairs_give_the_same_bytes_and_take_the_place_of_earlier_ones(shards, tiny_folder, tmp_path):
    data, folder = _data(shards, tiny_folder), tmp_path / "pairs"
    (tmp_path / ".pairs.new/preference").mkdir(parents=True)  # left by a run that was killed
    data.write_pairs(folder, [_entry(0, [(0, 1)])], summary=dict)
    tar = (folder / "preference/shard-000000.tar").read_bytes()
    data.write_pairs(folder, [_entry(1, [(1, 0)])], summary=dict)
    assert (folder / "preference/shard-000000.tar").read_bytes() != tar
    data.write_pairs(folder, [_entry(0, [(0, 1)])], summary=dict)
    assert (folder / "preference/shard-000000.tar").read_bytes() == tar
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "prompts"]


def test_what_fails_on_the_way_leaves_the_earlier_pairs_in_place(shards, tiny_folder, tmp_path):
    data, folder = _data(shards, tiny_folder), tmp_path / "pairs"
    data.write_pairs(folder, [_entry(0, [(0, 1)])], summary=dict)

    def made():
        yield _entry(1, [(0, 1)])
        raise InputError("the judge went home")

    with pytest.raises(InputError, match="went home"):
        data.write_pairs(folder, made(), summary=dict)
    assert json.loads((folder / "provenance.jsonl").read_text())["prompt"] == "k0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "prompts"]


def test_the_pairs_train_a_reward_model_s_datamodule(digits, tiny_folder, tmp_path):
    data = _data(digits / "prompt/heldout", tiny_folder)
    made = [_entry(row, [(0, 1)]) for row in range(len(data))]
    data.write_pairs(tmp_path / "pairs", made, summary=dict)
    training = PreferenceDataModule(
        str(tiny_folder), train=str(tmp_path / "pairs/preference"), batch_size=HELDOUT, video_frames=FRAMES
    )
    training.setup("fit")
    batch = next(iter(training.train_dataloader()))
    chosen = [ids[mask] for ids, mask in zip(batch.chosen.ids, batch.chosen.mask, strict=True)]
    assert "right" in data.encoder.tokenizer.decode(chosen[0])
    assert len(set(batch.modality.tolist())) == 4
    assert torch.equal(batch.margin, torch.zeros(HELDOUT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"limit": 0}, "data.limit is 0"),
        ({"predict": None}, "names nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(shards, tiny_folder, options, message):
    with pytest.raises(InputError, match=message):
        PairMakingDataModule(str(tiny_folder), **{"predict": str(shards), **options}).setup("predict")
