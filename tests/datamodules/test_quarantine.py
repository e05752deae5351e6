# SPDX-License-Identifier: Apache-2.0
"""Bad samples: each is listed once, whatever is killed and resumed, and too many of them end the run."""

import json
from contextlib import nullcontext

import pytest

from ixc_lightning.datamodules.quarantine import MAX_CAUSES, OTHER, BadSample, Policy, Quarantine
from ixc_lightning.types import InputError

MARGIN = "must be finite and not negative, not nan; to invert it, swap chosen and rejected"


def bad(number, problem=MARGIN, field="margin"):
    shard, key = f"set/shard-{number // 4:06d}.tar", f"s{number}"
    return BadSample(key, shard, f"{shard}, sample {key!r}, {field}: {problem}")


def listed(folder):
    lines = [
        line for path in sorted(folder.glob("bad-samples-*.jsonl")) for line in path.read_text().splitlines()
    ]
    return sorted(int(json.loads(line)["key"][1:]) for line in lines)


def run(quarantine, positions, bad_ones, world=1, rank=0, batch=1):
    """Consume the order in global batches, as one of ``world`` ranks does."""
    for start in range(positions.start, positions.stop, batch * world):
        mine = range(start + rank, start + batch * world, world)
        for position in mine:
            if position in bad_ones:
                quarantine.add(bad(position), start + batch * world)
        quarantine.seen(len(mine), position=start + batch * world)


def test_a_line_says_key_shard_reason_and_position(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path / "bad", rank=3, world_size=4)
    quarantine.add(bad(9), 17)
    (line,) = (tmp_path / "bad" / "bad-samples-00003.jsonl").read_text().splitlines()
    reason = f"set/shard-000002.tar, sample 's9', margin: {MARGIN}"
    assert json.loads(line) == {
        "key": "s9",
        "shard": "set/shard-000002.tar",
        "reason": reason,
        "position": 17,
    }


def test_under_raise_the_first_bad_sample_ends_the_run_and_nothing_is_written(tmp_path):
    quarantine = Quarantine("raise", tmp_path / "bad")
    quarantine.seen(4, position=4)
    with pytest.raises(InputError, match=r"^set/shard-000002.tar, sample 's9', margin: must be finite"):
        quarantine.add(bad(9), 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (", sample 'k1', margin: must be finite, not nan; swap", "margin: must be finite, not nan"),
        (
            ", sample 'k1', chosn: unknown field, did you mean 'chosen'?",
            "chosn: unknown field, did you mean '…'?",
        ),
        (":k1.00.jpg: cannot be decoded (broken); get it", "#.jpg: cannot be decoded"),
        (":k1: 912 tokens, more than max_tokens=800; raise it", "# tokens, more than max_tokens=#"),
        (": is damaged at byte 512, or is two tars", "is damaged at byte #, or is two tars"),
        ("", OTHER),
    ],
)
def test_a_cause_is_the_reason_without_names_and_numbers(problem, cause):
    assert BadSample("k1", "set/a.tar", f"set/a.tar{problem}").cause == cause


def test_causes_beyond_a_number_are_counted_together(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path)
    for number in range(MAX_CAUSES + 5):
        quarantine.add(BadSample("k", "a.tar", "a.tar: " + "x" * (number + 1)), number)
    assert len(quarantine.counts) == MAX_CAUSES + 1
    assert (quarantine.counts[OTHER], quarantine.num_bad) == (5, MAX_CAUSES + 5)


@pytest.mark.parametrize(("number", "ends"), [(10, False), (11, True)])
def test_more_than_the_fraction_ends_the_run_and_the_fraction_itself_does_not(tmp_path, number, ends):
    quarantine = Quarantine("quarantine", tmp_path, max_fraction=0.1, min_seen=100)
    for position in range(number):
        quarantine.add(bad(position), position)
    quarantine.seen(99, position=99)  # too few to judge by
    message = rf"{tmp_path}: 11 of 100 samples of rank 0 .* limit of 0.1; .*margin"
    with pytest.raises(InputError, match=message) if ends else nullcontext():
        quarantine.seen(1, position=100)


def test_a_limit_of_zero_allows_none_and_of_one_all(tmp_path):
    none, all_ = (Quarantine("quarantine", tmp_path, max_fraction=f, min_seen=1) for f in (0.0, 1.0))
    for quarantine in (none, all_):
        quarantine.seen(1, position=1)
        quarantine.add(bad(1), 1)
    all_.seen(1, position=2)
    with pytest.raises(InputError, match="limit of 0; "):
        none.seen(1, position=2)


BAD = {1, 2, 7, 8, 11, 13, 14, 22, 29}


@pytest.mark.parametrize("saved_at", [0, 8, 16, 24])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4), (4, 2), (2, 4)])
def test_after_a_kill_each_bad_sample_is_listed_and_counted_once(tmp_path, saved_at, before, after):
    """Saved at one place, killed further on, resumed on another number of ranks."""
    ranks = [Quarantine("quarantine", tmp_path, rank=rank, world_size=before) for rank in range(before)]
    for rank, quarantine in enumerate(ranks):
        run(quarantine, range(0, saved_at), BAD, before, rank)
    state = json.loads(json.dumps(ranks[0].state_dict()))
    for rank, quarantine in enumerate(ranks):
        run(quarantine, range(saved_at, 24), BAD, before, rank)

    ranks = [Quarantine("quarantine", tmp_path, rank=rank, world_size=after) for rank in range(after)]
    for rank, quarantine in reversed(list(enumerate(ranks))):  # in any order: they do not wait for each other
        quarantine.load_state_dict(state)
        run(quarantine, range(saved_at, 32), BAD, after, rank)
    assert listed(tmp_path) == sorted(BAD)
    assert sum(quarantine.num_bad for quarantine in ranks) == len(BAD)
    assert sum(quarantine.num_seen for quarantine in ranks) == 32
    assert "9 of 32 samples (28 %)" in ranks[0].summary()


def test_resuming_on_more_ranks_does_not_make_the_fraction_larger(tmp_path):
    few = Quarantine("quarantine", tmp_path, max_fraction=0.1, min_seen=1)
    few.seen(90, position=90)
    for position in range(10):
        few.add(bad(position), position)
    few.seen(10, position=100)
    for rank in range(4):
        many = Quarantine("quarantine", tmp_path, max_fraction=0.13, min_seen=1, rank=rank, world_size=4)
        many.load_state_dict(few.state_dict())
        many.seen(1, position=104)  # 3 of 26 at most
    assert few.num_bad == 10


def test_a_new_run_begins_with_empty_lists(tmp_path):
    for _ in range(2):
        quarantine = Quarantine("quarantine", tmp_path)
        run(quarantine, range(0, 4), BAD)
    assert listed(tmp_path) == [1, 2]
    Quarantine("quarantine", tmp_path).seen(2, position=2)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_line_is_none(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path)
    run(quarantine, range(0, 4), BAD)
    state = quarantine.state_dict()
    path = tmp_path / "bad-samples-00000.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    resumed = Quarantine("quarantine", tmp_path)
    resumed.load_state_dict(state)
    resumed.add(bad(7), 7)
    assert listed(tmp_path) == [1, 2, 7]


def test_where_the_lists_are_gone_the_counts_of_the_state_go_on(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path / "old")
    run(quarantine, range(0, 4), BAD)
    resumed = Quarantine("quarantine", tmp_path / "new")
    resumed.load_state_dict(quarantine.state_dict())
    assert (resumed.num_bad, resumed.num_seen) == (2, 4)
    assert resumed.summary().startswith("2 of 4 samples (50 %) could not be used")


def test_the_summary_names_the_causes_the_most_frequent_first(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path)
    for position in range(3):
        quarantine.add(bad(position, "is empty; drop the record", "chosen"), position)
    quarantine.add(bad(4), 4)
    quarantine.seen(1000, position=1000)
    assert quarantine.summary() == (
        "4 of 1,000 samples (0.4 %) could not be used and were left out: chosen: is empty (3 times), "
        "margin: must be finite and not negative, not nan (1 times). "
        f"{tmp_path}/bad-samples-*.jsonl names each with its reason."
    )


def test_the_summary_of_a_clean_run_says_so(tmp_path):
    quarantine = Quarantine("quarantine", tmp_path, world_size=2)
    quarantine.seen(4, position=8)
    assert quarantine.summary() == "Each of the 8 samples could be used."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "skip"}, "on_bad_sample is 'skip'; use one of raise, quarantine"),
        ({"max_fraction": 1.5}, "is 1.5; it"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        Quarantine(**{"policy": Policy.RAISE, "folder": tmp_path, **settings})
