# SPDX-License-Identifier: Apache-2.0
"""The digits set: real pictures, never in both splits, and pairs that only the digits tell apart."""

import re
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.datamodules.sources import digits
from ixc_lightning.datamodules.sources._digit_draws import SUMS, misread, total
from ixc_lightning.datamodules.sources._digit_questions import SKILLS, draw_task
from ixc_lightning.types import MODALITIES, InputError

SIZES = {"pairs": 200, "instructions": 240, "prompts": 160, "heldout_pairs": 120}
DRAWS = 6_000
CHANCE = 0.04
"""How far a blind rule may be from one half over ``DRAWS`` tasks: four standard deviations are 0.037."""
MAX_CORRELATION = 0.04
MAX_WORDS = 200
MAX_QUESTION, MAX_ANSWER = 15, 8
YES_NO = {True: "yes", False: "no"}
LOSSY = 3.0
"""Mean grey-level error that JPEG and H.264 may make on a digit; two pictures are mostly 30 or more apart."""
NEAREST = 0.99
"""Share of decoded pictures whose nearest picture is the one they were made from."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "set"
    digits.convert(str(out), **SIZES)
    return out


@pytest.fixture(scope="module")
def pictures():
    return digits.split_pictures()


def records(folder, kind, split):
    dataset = ShardDataset(folder / kind / split, kind=kind)
    return [dataset[index] for index in range(len(dataset))]


def text(messages):
    return "".join(
        part["text"] for message in messages for part in message["content"] if part["type"] == "text"
    )


def words(sentence):
    return re.findall(r"\w+|[^\w\s]", sentence)


def shown(record):
    """The decoded pictures of a record, in order; of a clip one picture for each time a digit is held."""
    frames = []
    for part in record.parts:
        if part["type"] == "image":
            frames.append(np.asarray(decode_image(record.media[part["file"]], where="test")))
        if part["type"] == "video":
            frames += list(
                decode_video(record.media[part["file"]], frames=99, where="test").frames[:: digits.HOLD]
            )
    return [frame.astype(np.float32).mean(axis=-1) for frame in frames]


def recognised(frame, pool):
    """The digit of the nearest picture, and its mean grey-level error."""
    labels, stack = pool
    errors = np.abs(stack - frame).mean(axis=(1, 2))
    return labels[errors.argmin()], errors.min()


def pool_of(split):
    labels = [digit for digit, group in split.items() for _ in group]
    return labels, np.stack([picture for group in split.values() for picture in group]).astype(np.float32)


def test_every_folder_holds_what_was_asked_for_a_quarter_of_each_modality(folder):
    expected = {"preference": 200, "instruction": 240, "prompt": 160}
    for kind, train in expected.items():
        for split, size in (("train", train), ("heldout", SIZES["heldout_pairs"])):
            dataset = ShardDataset(folder / kind / split, kind=kind)
            assert len(dataset) == size
            found = Counter(dataset.modality(index) for index in range(len(dataset)))
            assert found == dict.fromkeys(MODALITIES, size // 4)
            assert dataset.domains == ["arithmetic", "comparison", "reading"]
    assert "creativecommons.org/licenses/by/4.0" in (folder / "README.md").read_text()


def test_every_modality_has_every_domain():
    for skills in SKILLS.values():
        assert {skill.domain for skill in skills} == {"arithmetic", "comparison", "reading"}
    assert tuple(SKILLS) == MODALITIES


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder, tmp_path):
    again = digits.convert(str(tmp_path / "again"), **SIZES)
    other = digits.convert(str(tmp_path / "other"), **{name: 20 for name in SIZES}, seed=1)
    for name, manifest in again.items():
        dataset = ShardDataset(folder / name, kind=name.split("/")[0])
        written = [path.read_bytes() for path in dataset.shards]
        assert written == [(tmp_path / "again" / name / shard.file).read_bytes() for shard in manifest.shards]
        assert manifest.shards[0].sha256 != other[name].shards[0].sha256


def test_splits_share_no_picture_and_have_every_digit_in_the_same_share(pictures):
    hashes = {
        name: {p.tobytes() for group in split.values() for p in group} for name, split in pictures.items()
    }
    assert {name: len(group) for name, group in hashes.items()} == {"train": 1437, "heldout": 360}
    assert not hashes["train"] & hashes["heldout"]
    for digit in range(10):
        assert 34 <= len(pictures["heldout"][digit]) <= 37


def test_the_split_is_that_of_every_seed_and_uses_real_pictures(pictures):
    from sklearn.datasets import load_digits

    real = {digits._enlarge(image).tobytes() for image in load_digits().images}
    assert {p.tobytes() for split in pictures.values() for group in split.values() for p in group} == real
    again = digits.split_pictures()
    assert all(
        (a == b).all()
        for name in pictures
        for d in range(10)
        for a, b in zip(pictures[name][d], again[name][d], strict=True)
    )


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_media_decode_back_to_pictures_of_their_own_split(folder, pictures, split):
    """Pictures of PNG, JPEG and MP4 are nearest to a picture of their split, and hardly differ from it."""
    both = {name: pool_of(pictures[name]) for name in pictures}
    other = "heldout" if split == "train" else "train"
    own = []
    for record in records(folder, "prompt", split)[:60]:
        for frame in shown(record):
            _, error = recognised(frame, both[split])
            assert error < LOSSY
            own.append(error < recognised(frame, both[other])[1])
    assert np.mean(own) > NEAREST


def truth(modality, question, row):
    """What a person would answer, worked out from the question anew."""
    if modality == "text":
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        asked = re.search(r"a (\d)", question)
        row = numbers
        if asked and "there" in question:
            row = numbers[1:] if question.startswith("Is") else numbers[:-1]
    q = question.lower()
    if "scending order" in q:
        return " ".join(map(str, sorted(row, reverse="descending" in q)))
    if "same" in q:
        return YES_NO[row[0] == row[1]]
    if "even" in q:
        return "odd" if row[0] % 2 else "even"
    if "larger than 5" in q:
        return YES_NO[row[0] > 5]
    if "larger than the first" in q or "smaller than the last" in q:
        return YES_NO[row[-1] > row[0]]
    if found := re.search(r"(?:there|show) a (\d)", q):
        return YES_NO[int(found[1]) in row]
    if "larger" in q or "smaller" in q:
        best = (max if "larger" in q else min)(row)
        return str(best) if modality == "text" else ("first", "second")[row.index(best)]
    if "plus one" in q or "add one" in q or "comes after" in q:
        return str(row[0] + 1)
    if "sum" in q or "plus" in q or "add" in q:
        return str(sum(row))
    if "how many" in q or "count" in q:
        return str(len(row))
    if "first" in q or "last" in q:
        return str(row[0 if "first" in q else -1])
    return " ".join(map(str, row))


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_answer_is_true_and_the_wrong_one_is_not(modality):
    random = Random(1)
    for _ in range(1500):
        task = draw_task(modality, random)
        assert task.answer == truth(modality, task.question, list(task.digits)), task
        assert task.answer in task.chosen
        assert f" {task.answer} " not in re.sub(r"[^\w]", " ", f" {task.rejected} "), task


def test_the_answers_of_records_are_those_of_the_digits_that_they_show(folder, pictures):
    pool = pool_of(pictures["heldout"])
    wrong = 0
    heldout = [record for record in records(folder, "preference", "heldout") if record.modality != "text"]
    for record in heldout:
        row = [recognised(frame, pool)[0] for frame in shown(record)]
        assert record.answer in text(record.chosen)
        wrong += record.answer != truth(record.modality, text(record.messages), row)
    assert wrong <= 1 + len(heldout) * (1 - NEAREST)


def test_an_instruction_answers_with_the_right_answer_and_a_prompt_has_it_bare(folder):
    for record in records(folder, "instruction", "train"):
        assert record.answer in text(record.messages[-1:])
    assert all(record.answer for record in records(folder, "prompt", "train"))


def blind_accuracy(tasks, key):
    """Held-out accuracy of the best rule over ``key(task, response)``: the one chosen more often wins."""
    wins = defaultdict(Counter)
    half = len(tasks) // 2
    for task in tasks[:half]:
        wins[key(task, task.chosen)][True] += 1
        wins[key(task, task.rejected)][False] += 1

    def score(task, response):
        seen = wins[key(task, response)]
        return (seen[True] + 1) / (seen.total() + 2)

    margins = np.array([score(task, task.chosen) - score(task, task.rejected) for task in tasks[half:]])
    return (margins > 0).mean() + (margins == 0).mean() / 2


RULES = {
    "the answer": lambda task, response: response,
    "the answer's value": lambda task, response: re.sub(r"^.*(is|are|it is|the) ", "", response).rstrip("."),
    "the answer and the question": lambda task, response: (response, task.question),
    "its words": lambda task, response: len(response.split()),
    "its letters": lambda task, response: len(response),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("modality", ["image", "multi_image", "video"])
def test_no_rule_that_does_not_see_the_pictures_beats_chance(modality, rule):
    random = Random(2)
    tasks = [draw_task(modality, random) for _ in range(DRAWS)]
    assert blind_accuracy(tasks, RULES[rule]) == pytest.approx(0.5, abs=CHANCE)


@pytest.mark.parametrize("rule", ["the answer", "the answer's value", "its words", "its letters"])
def test_of_text_no_rule_that_does_not_read_the_question_beats_chance(rule):
    random = Random(2)
    tasks = [draw_task("text", random) for _ in range(DRAWS)]
    assert blind_accuracy(tasks, RULES[rule]) == pytest.approx(0.5, abs=CHANCE)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("length", [len, lambda answer: len(answer.split())], ids=["letters", "words"])
def test_the_length_says_nothing(modality, length):
    random = Random(3)
    tasks = [draw_task(modality, random) for _ in range(DRAWS)]
    lengths = np.array([(length(task.chosen), length(task.rejected)) for task in tasks])
    labels = np.array([(1, 0)] * DRAWS)
    assert abs(np.corrcoef(lengths.ravel(), labels.ravel())[0, 1]) < MAX_CORRELATION
    longer = np.sign(lengths[:, 0] - lengths[:, 1])
    assert (longer + 1).mean() / 2 == pytest.approx(0.5, abs=CHANCE)
    assert (longer != 0).mean() > 0.5  # lengths do differ


@pytest.mark.parametrize("modality", MODALITIES)
def test_with_a_length_bias_that_share_of_right_answers_is_long_and_of_wrong_ones_short(modality):
    random = Random(6)
    tasks = [draw_task(modality, random, length_bias=0.5) for _ in range(DRAWS)]
    lengths = np.array([(len(task.chosen.split()), len(task.rejected.split())) for task in tasks])
    longer = lengths[:, 0] > lengths[:, 1] + 1
    assert longer.mean() == pytest.approx(0.5, abs=CHANCE)
    assert (lengths[~longer, 0] == lengths[~longer, 1]).all()
    assert all(task.answer in task.chosen for task in tasks)


def test_only_the_pairs_that_are_trained_on_have_a_length_bias(tmp_path):
    sizes = {name: 40 for name in SIZES}
    digits.convert(str(tmp_path / "plain"), **sizes)
    digits.convert(str(tmp_path / "biased"), **sizes, length_bias=1.0)
    others = [
        path.relative_to(tmp_path / "plain")
        for path in sorted((tmp_path / "plain").rglob("*.tar"))
        if path.read_bytes() != (tmp_path / "biased" / path.relative_to(tmp_path / "plain")).read_bytes()
    ]
    assert [str(path.parent) for path in others] == ["preference/train"]
    for record in records(tmp_path / "biased", "preference", "train"):
        assert len(text(record.chosen).split()) > len(text(record.rejected).split())


def test_a_length_bias_is_a_share(tmp_path):
    with pytest.raises(InputError, match=r"length_bias is 1\.5, but is a share"):
        digits.convert(str(tmp_path / "set"), length_bias=1.5)


def test_wrong_digits_and_sums_are_drawn_both_ways_alike():
    random = Random(4)
    for size, draw in (
        (10, lambda: (d := random.randrange(10), misread(d, random))),
        (len(SUMS), lambda: sums(random)),
    ):
        table = np.zeros((19, 19))
        for _ in range(DRAWS):
            table[draw()] += 1
        spread = 5 * np.sqrt(table + table.T)
        assert (np.abs(table - table.T) <= spread).all()
        assert (table.diagonal() == 0).all()
        rows = table.sum(axis=0)
        assert (np.abs(rows[rows > 0] - DRAWS / size) < 5 * np.sqrt(DRAWS / size)).all()


def sums(random):
    draw = total(random)
    return int(draw.answer), int(draw.wrong)


def test_the_language_is_small():
    random = Random(5)
    tasks = [draw_task(modality, random) for modality in MODALITIES for _ in range(2000)]
    vocabulary = {
        word for task in tasks for s in (task.question, task.chosen, task.rejected) for word in words(s)
    }
    assert len(vocabulary) <= MAX_WORDS
    assert max(len(task.question.split()) for task in tasks) <= MAX_QUESTION
    assert max(len(answer.split()) for task in tasks for answer in (task.chosen, task.rejected)) <= MAX_ANSWER


@pytest.mark.parametrize("frames", range(4, 9))
@pytest.mark.parametrize("length", [2, 3, 4])
def test_evenly_sampled_frames_see_every_digit(pictures, length, frames):
    row = tuple(range(length))
    _, data = digits.DigitMedia(pictures["heldout"], "0").clip(row, Random(0))
    decoded = decode_video(data, frames=frames, where="test")
    assert decoded.num_frames == length * digits.HOLD
    assert {index // digits.HOLD for index in decoded.indices} == set(row)


def test_pictures_are_png_and_jpeg_and_clips_mp4(folder):
    magic = {"png": b"\x89PNG", "jpg": b"\xff\xd8\xff", "mp4": b"ftyp"}
    found = Counter()
    for record in records(folder, "prompt", "train"):
        for name, data in record.media.items():
            extension = name.split(".")[1]
            found[extension] += 1
            assert magic[extension] in data[:8]
    assert min(found[extension] for extension in magic) > 30


def test_a_folder_with_content_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty; name a new folder"):
        digits.convert(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_sizes_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="heldout_pairs must be positive"):
        digits.convert(str(tmp_path / "set"), heldout_pairs=0)


def test_out_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "README", None)  # the last thing to be written
    with pytest.raises(TypeError):
        digits.convert(str(tmp_path / "set"), **{name: 4 for name in SIZES})
    assert list(tmp_path.iterdir()) == []
