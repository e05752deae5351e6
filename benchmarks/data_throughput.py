# SPDX-License-Identifier: Apache-2.0
"""How fast shards become batches: this loader, the same work in bare loops, and plain webdataset.

``python benchmarks/data_throughput.py`` takes minutes on two quiet cores, needs ``simplejpeg`` and ``psutil``
besides the package, and prints ratios; ``--help`` tells what can be changed.

All contenders have two processes, read the same preference records from the same shards (in the page cache),
and make the same tensors of them with the same processor, one torch thread each:

ours        ``PreferenceDataModule``: read, validate, decode, encode, collate, hand over to this process.
            Pixels come as bytes where the processor allows, to become floats on the device.
            With ``floats``, this process makes floats of them, as training on a CPU would.
loops       Records are in memory, and each process works through its half: decode the media, then the
            processor's call for the prompt and the tokenizer's for the responses. No order, no validation,
            no batches, nothing is handed over. With ``media only``, not even a tokenizer: decode and resize.
webdataset  ``WebDataset(...).decode("pil").map(...).batched(...)`` behind a ``WebLoader``, with the same
            encoder and collator; pictures are decoded by Pillow, as that library does.

They take turns for several rounds. A ratio is that of two contenders in the same round; printed are the
median and the spread over the rounds, for wall time and for the CPU time of all processes, which other
programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import psutil
import torch
import webdataset as wds
from lightning.pytorch.trainer.states import TrainerStatus
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from ixc_lightning.datamodules import PreferenceDataModule
from ixc_lightning.datamodules.collate import PreferenceCollator
from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.datamodules.sources.digits import convert
from ixc_lightning.models.tiny import CHAT_TEMPLATE, tiny_processor, tiny_tokenizer
from ixc_lightning.types import Record

WORKERS = 2
SHARDS = 8
QUALITY = 90
FRAMES = 4
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP = "<|vision_start|><|video_pad|><|vision_end|>"
GOALS = {"loops": 0.9, "webdataset": 1.3}


class Spent(NamedTuple):
    """What one pass over the data took, in seconds."""

    wall: float
    cpu: float


def write_photos(folder: Path, *, count: int, width: int, height: int) -> None:
    """Write preference shards with one JPEG each, which compresses about as a photo does."""

    def photo(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        layers = [
            Image.fromarray(rng.integers(0, 256, (side * height // width + 1, side, 3), dtype=np.uint8))
            for side in (4, 16, 64, width)
        ]
        pixels = [
            np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) for layer in layers
        ]
        mixed = np.average(pixels, axis=0, weights=(8, 4, 2, 1))
        stream = io.BytesIO()
        Image.fromarray(mixed.astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
        return stream.getvalue()

    def sample(number: int) -> Sample:
        question = "How many pictures of different digits are shown, and which one is the largest of all?"
        answer = (
            "The picture shows a sequence of digits in ascending order, from the smallest to the largest. "
        )
        content = [{"type": "image", "file": "00.jpg"}, {"type": "text", "text": question}]
        record = {
            "id": str(number),
            "source": "noise",
            "domain": "photos",
            "messages": [{"role": "user", "content": content}],
            "chosen": answer * 3,
            "rejected": answer * 2,
        }
        return Sample(f"{number:06d}", record, {"00.jpg": photo(number)})

    write_shards(map(sample, range(count)), folder, kind="preference", samples_per_shard=-(-count // SHARDS))


def write_photo_processor(folder: Path) -> None:
    """Write a processor that treats pictures as Qwen2.5-VL's does: patches of 14, up to 16,384 of them."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        model_specific_special_tokens=named,
    )
    template = CHAT_TEMPLATE.replace(
        "{{ '<' + part['type'] + '>' }}",
        f"{{{{ '{PICTURE}' if part['type'] == 'image' else '{CLIP}' }}}}",
    )
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=template,
    ).save_pretrained(folder)


class Ours:
    """This package's loader."""

    def __init__(self, shards: Path, processor: Path, *, batch_size: int) -> None:
        self.data = PreferenceDataModule(
            str(processor), train=str(shards), batch_size=batch_size, num_workers=WORKERS, video_frames=FRAMES
        )
        self.data.trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
        )
        self.data.trainer.state.status = TrainerStatus.RUNNING  # else pixels come as floats
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()

    def run(self) -> int:
        """Pass over the data; how many records came."""
        return sum(len(batch.keys) for batch in self.loader)

    def pids(self) -> list[int]:
        """The processes at work besides this one."""
        iterator = self.loader._iterator
        return [worker.pid for worker in iterator._workers]


class OursFloats(Ours):
    """This package's loader, and the step that a device would do."""

    def run(self) -> int:
        """Pass over the data; how many records came."""
        return sum(len(self.data.on_after_batch_transfer(batch, 0).keys) for batch in self.loader)


class PlainWebDataset:
    """The pipeline that webdataset's own documentation shows, around this package's encoder and collator."""

    def __init__(self, shards: Path, processor: Path, *, batch_size: int) -> None:
        encoder = TakesDecoded(str(processor), video_frames=FRAMES)
        collator = PreferenceCollator(encoder, ShardDataset(shards, kind="preference").domains)
        urls = sorted(map(str, shards.glob("*.tar")))
        pipeline = (
            wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
            .shuffle(64, initial=8)
            .decode("pil")
            .map(to_record)
            .batched(batch_size, collation_fn=collator)
        )
        self.loader = wds.WebLoader(
            pipeline,
            batch_size=None,
            num_workers=WORKERS,
            persistent_workers=True,
            multiprocessing_context="fork",
        )

    def run(self) -> int:
        """Pass over the data; how many records came."""
        return sum(len(batch.keys) for batch in self.loader)

    def pids(self) -> list[int]:
        """The processes at work besides this one."""
        iterator = self.loader.pipeline[0]._iterator
        return [worker.pid for worker in iterator._workers]


class TakesDecoded(ChatEncoder):
    """The same encoder for records whose pictures are decoded already; clips it decodes itself."""

    def _decode(self, record: Record) -> tuple[list[Any], list[Any]]:
        images = [medium for medium in record.media.values() if isinstance(medium, Image.Image)]
        clips = [
            decode_video(medium, frames=self.video_frames, where=record.key)
            for medium in record.media.values()
            if isinstance(medium, bytes)
        ]
        return images, clips


def to_record(sample: Mapping[str, Any]) -> Record:
    """What the pipeline's sample says, unchecked."""
    raw = sample["json"]
    answers = {
        name: ({"role": "assistant", "content": [{"type": "text", "text": raw[name]}]},)
        for name in ("chosen", "rejected")
    }
    media = {name: medium for name, medium in sample.items() if name != "json" and not name.startswith("__")}
    messages = tuple(
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in raw["messages"]
    )
    return Record(
        key=sample["__key__"],
        shard=sample["__url__"],
        source=raw["source"],
        domain=raw["domain"],
        messages=messages,
        media=media,
        **answers,
    )


class BareLoops:
    """Two processes that loop over their half of the records, and hand nothing over."""

    def __init__(self, shards: Path, processor: Path, *, media_only: bool) -> None:
        context = multiprocessing.get_context("fork")
        halves = [(shards, processor, media_only, number) for number in range(WORKERS)]
        self.pipes, self.processes = [], []
        for half in halves:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_loops, args=(theirs, *half), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self) -> int:
        """Pass over the data; how many records came."""
        for pipe in self.pipes:
            pipe.send("go")
        return sum(pipe.recv() for pipe in self.pipes)

    def pids(self) -> list[int]:
        """The processes at work besides this one."""
        return [process.pid for process in self.processes]


def serve_loops(pipe: Any, shards: Path, processor: Path, media_only: bool, number: int) -> None:
    """Read a half of the records, then loop over it whenever told to."""
    torch.set_num_threads(1)
    encoder = ChatEncoder(str(processor), video_frames=FRAMES)
    dataset = ShardDataset(shards, kind="preference")
    records = [dataset.record(index) for index in range(number, len(dataset), WORKERS)]
    texts = [
        (
            encoder._text(record, record.messages, opens_answer=True),
            [part["text"] for answer in (record.chosen, record.rejected) for part in answer[0]["content"]],
        )
        for record in records
    ]
    work = partial(loop_media, encoder) if media_only else partial(loop_all, encoder)
    while pipe.poll(None):
        pipe.recv()
        for record, (text, answers) in zip(records, texts, strict=True):
            work(record, text, answers)
        pipe.send(len(records))


def loop_all(encoder: ChatEncoder, record: Record, text: str, answers: list[str]) -> None:
    """Decode the media of a record, and call processor and tokenizer."""
    encoder.processor(text=[text], return_tensors="pt", **encoder._media(*encoder._decode(record)))
    for answer in answers:
        encoder.tokenizer([answer], add_special_tokens=False, return_tensors="pt")


def loop_media(encoder: ChatEncoder, record: Record, text: str, answers: list[str]) -> None:
    """Decode the media of a record, and resize them."""
    for part in record.parts:
        if part["type"] == "image":
            picture = decode_image(record.media[part["file"]], where="")
            encoder.processor.image_processor([picture], return_tensors="pt")
        elif part["type"] == "video":
            clip = decode_video(record.media[part["file"]], frames=FRAMES, where="")
            encoder.processor.video_processor([clip.frames], do_sample_frames=False, return_tensors="pt")


def measure(contender: Any, expected: int) -> Spent:
    """One pass; all processes' CPU time counts, this one's too."""
    pids = [os.getpid(), *contender.pids()]
    before, start = sum(map(cpu_seconds, pids)), time.perf_counter()
    assert contender.run() == expected, "a contender lost records"
    wall = time.perf_counter() - start
    return Spent(wall, sum(map(cpu_seconds, pids)) - before)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def compare(shards: Path, processor: Path, *, batch_size: int, rounds: int) -> None:
    """Let the contenders take turns, and print what came of it."""
    contenders: dict[str, Any] = {
        "loops": BareLoops(shards, processor, media_only=False),
        "loops, media only": BareLoops(shards, processor, media_only=True),
        "ours": Ours(shards, processor, batch_size=batch_size),
        "ours, floats": OursFloats(shards, processor, batch_size=batch_size),
        "webdataset": PlainWebDataset(shards, processor, batch_size=batch_size),
    }
    count = len(ShardDataset(shards, kind="preference"))
    for contender in contenders.values():
        assert contender.run() == count, "a contender lost records"  # starts the workers, fills the caches
    spent: dict[str, list[Spent]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent[name].append(measure(contenders[name], count))
    print(f"{'':<20} {'records/s':>10} {'CPU ms/record':>14}")
    for name, passes in spent.items():
        wall, cpu = (median(values) / count for values in zip(*passes, strict=True))
        print(f"{name:<20} {1 / wall:>10.1f} {1e3 * cpu:>14.2f}")
    print(f"\n{'speed of ours to':<20} {'wall time':>24} {'CPU time':>24}")
    for name in spent.keys() - {"ours"}:
        ratios = [
            [
                getattr(other, kind) / getattr(own, kind)
                for own, other in zip(spent["ours"], spent[name], strict=True)
            ]
            for kind in Spent._fields
        ]
        cells = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios]
        goal = f"   goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name:<20} {cells[0]:>24} {cells[1]:>24}{goal}")


def main() -> None:
    """Make the data and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=512, help="records with a photo each")
    parser.add_argument("--digits", type=int, default=2048, help="records of digits; 0 leaves them out")
    parser.add_argument("--size", default="640x480", help="of the photos")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder / "photos", count=options.photos, width=width, height=height)
        write_photo_processor(folder / "photo_processor")
        size = sum(path.stat().st_size for path in (folder / "photos").glob("*.tar")) / options.photos
        print(f"\n{options.photos} JPEGs of {options.size}, {size / 1e3:.0f} kB each; Qwen2.5-VL's pixels\n")
        compare(
            folder / "photos",
            folder / "photo_processor",
            batch_size=options.batch_size,
            rounds=options.rounds,
        )
        if options.digits:
            convert(str(folder / "digits"), pairs=options.digits, instructions=1, prompts=1, heldout_pairs=4)
            tiny_processor().save_pretrained(folder / "tiny_processor")
            print(f"\n{options.digits} records of digits: text, pictures of 32x32, clips; tiny processor\n")
            compare(
                folder / "digits/preference/train",
                folder / "tiny_processor",
                batch_size=32,
                rounds=options.rounds,
            )


if __name__ == "__main__":
    main()
