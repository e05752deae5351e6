# SPDX-License-Identifier: Apache-2.0
"""Real handwriting as a small multi-modal data set: the UCI digits that scikit-learn ships; needs no network.

Pictures, rows of pictures, clips and text. The answers of a pair differ in truth alone, see
``_digit_draws``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ixc_lightning.datamodules.manifest import Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, new_folder, write_shards
from ixc_lightning.datamodules.sources._digit_questions import Task, draw_task
from ixc_lightning.types import MODALITIES, InputError

SOURCE = "uci-digits"
SPLITS = ("train", "heldout")
HELDOUT_PICTURES = 360
SPLIT_SEED = 0
"""The split does not follow the user's seed: what is held out once is never trained on."""
SIZE = 32
JPEG_QUALITY = 95
FPS = 4
HOLD = 2
"""Frames for which a clip shows each digit: four evenly spaced frames see all of two to four digits."""
CLIPS = {2: 5, 3: 1, 4: 1}
"""Clips of the same row of digits, by its length. Encoding is the slow part, so records share clips."""
README = """# Handwritten digits as multi-modal records

Made with `python -m ixc_lightning convert digits`: preference pairs, instructions and prompts about real
handwritten digits as text, pictures, rows of pictures and short clips. Records of a `heldout` folder show
pictures that no record of a `train` folder shows; questions of text alone come from a small world, so they
occur in both.

The pictures are those of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, as scikit-learn ships them, enlarged from 8 to
32 pixels and encoded anew. They are licensed under Creative Commons Attribution 4.0 International,
https://creativecommons.org/licenses/by/4.0/.
"""

Picture = UInt8[np.ndarray, "32 32"]


def convert(
    out: str,
    *,
    pairs: int = 22400,
    instructions: int = 20800,
    prompts: int = 4000,
    heldout_pairs: int = 2000,
    length_bias: float = 0.0,
    seed: int = 0,
) -> dict[str, Manifest]:
    """Write the digits data set: shards of preference pairs, instructions and prompts.

    The folder ``out`` gets ``{preference,instruction,prompt}/{train,heldout}`` and a README with the licence.
    It appears when it is complete. A quarter of each set is text, one picture, several pictures, and video.
    The same arguments give the same bytes. With the defaults it takes half a minute.

    Args:
        out: folder to write; it must not exist, or be empty.
        pairs: preference pairs to train a reward model on.
        instructions: questions with right answers for supervised fine-tuning.
        prompts: questions with a bare reference answer for reinforcement learning.
        heldout_pairs: held-out pairs, and as many held-out instructions and prompts.
        length_bias: share of the training pairs in which the right answer is long and the wrong one short, as
            where annotators like long answers; if not 0, the answers of the other pairs are phrased alike.
        seed: seed of all choices but the split into train and held-out pictures.

    Returns:
        What each folder holds, by its name below ``out``.

    Raises:
        InputError: if ``out`` is not empty, a number is not positive, or the share is none.
    """
    sizes = {Kind.PREFERENCE: pairs, Kind.INSTRUCTION: instructions, Kind.PROMPT: prompts}
    if min(*sizes.values(), heldout_pairs) < 1:
        raise InputError(
            "convert digits: pairs, instructions, prompts and heldout_pairs must be positive; raise them"
        )
    if not 0 <= length_bias <= 1:
        raise InputError(f"convert digits: length_bias is {length_bias}, but is a share: 0 to 1")
    manifests = {}
    with new_folder(Path(out)) as folder:
        for split, pictures in split_pictures().items():
            media = DigitMedia(pictures, f"{seed}/{split}")
            for kind, size in sizes.items():
                count, bias = (size, length_bias) if split == "train" else (heldout_pairs, 0.0)
                samples = _samples(kind, split, count, media, seed, length_bias=bias)
                name = f"{kind.value}/{split}"
                manifests[name] = write_shards(samples, folder / name, kind=kind)
        (folder / "README.md").write_text(README, encoding="utf-8")
    return manifests


def split_pictures() -> dict[str, dict[int, list[Picture]]]:
    """Return the pictures of each split by digit, enlarged; the split has the same share of every digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    enlarged = [_enlarge(row.reshape(8, 8)) for row in pixels]
    halves = train_test_split(
        np.arange(len(digits)), test_size=HELDOUT_PICTURES, stratify=digits, random_state=SPLIT_SEED
    )
    return {
        split: {digit: [enlarged[index] for index in half if digits[index] == digit] for digit in range(10)}
        for split, half in zip(SPLITS, halves, strict=True)
    }


def _enlarge(pixels: np.ndarray) -> Picture:
    image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class DigitMedia:
    """Encoded pictures and clips of one split, each encoded once.

    Args:
        pictures: the pictures of each digit.
        seed: which pictures a clip shows, and which format a picture has, follows from this string alone.
    """

    def __init__(self, pictures: dict[int, list[Picture]], seed: str) -> None:
        self.pictures = pictures
        self.seed = seed
        self._encoded: dict[tuple[int, ...], tuple[str, bytes]] = {}

    def image(self, digit: int, random: Random) -> tuple[str, bytes]:
        """Return a picture of ``digit`` as extension and bytes; half of the pictures are PNG, half JPEG."""
        number = random.randrange(len(self.pictures[digit]))
        if (digit, number) not in self._encoded:
            extension = ("png", "jpg")[number % 2]
            self._encoded[digit, number] = extension, encode_picture(self.pictures[digit][number], extension)
        return self._encoded[digit, number]

    def clip(self, row: tuple[int, ...], random: Random) -> tuple[str, bytes]:
        """Return a clip that shows the digits of ``row`` in turn, as extension and bytes."""
        key = (*row, -random.randint(1, CLIPS[len(row)]))
        if key not in self._encoded:
            choice = Random(f"{self.seed}/{key}")
            frames = [frame for digit in row for frame in [choice.choice(self.pictures[digit])] * HOLD]
            self._encoded[key] = "mp4", encode_clip(frames)
        return self._encoded[key]


def encode_picture(picture: Picture, extension: str) -> bytes:
    """Return a grey picture as the bytes of a PNG or JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, {"png": "PNG", "jpg": "JPEG"}[extension], quality=JPEG_QUALITY)
    return stream.getvalue()


def encode_clip(frames: list[Picture]) -> bytes:
    """Return grey pictures as the bytes of an H.264 MP4 file, the same on every call."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "15"})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        # More threads change the bytes.
        video.codec_context.thread_count = 1
        grey = np.full((SIZE // 2, SIZE), 128, dtype=np.uint8)
        for frame in frames:
            planes = np.concatenate([_video_range(frame), grey])
            container.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(video.encode())
    return stream.getvalue()


def _video_range(picture: Picture) -> Picture:
    """Return luma in 16 to 235, as decoders expect it of H.264."""
    return (16 + picture * (219 / 255)).round().astype(np.uint8)


def _samples(
    kind: Kind, split: str, size: int, media: DigitMedia, seed: int, *, length_bias: float
) -> Iterator[Sample]:
    random = Random(f"{seed}/{kind.value}/{split}")
    for number in range(size):
        key = f"{number:06d}"
        modality = MODALITIES[number % len(MODALITIES)]
        task = draw_task(modality, random, length_bias=length_bias if kind is Kind.PREFERENCE else 0.0)
        record, files = _record(kind, task, modality, media, random)
        yield Sample(key, {"id": f"{SOURCE}-{kind.value}-{split}-{key}", "source": SOURCE} | record, files)


def _record(
    kind: Kind, task: Task, modality: str, media: DigitMedia, random: Random
) -> tuple[dict[str, Any], dict[str, bytes]]:
    shown: list[tuple[str, bytes]] = []
    if modality == "video":
        shown = [media.clip(task.digits, random)]
    elif modality != "text":
        shown = [media.image(digit, random) for digit in task.digits]
    files = {f"{place:02d}.{extension}": data for place, (extension, data) in enumerate(shown)}
    part = "video" if modality == "video" else "image"
    content = [*({"type": part, "file": name} for name in files), {"type": "text", "text": task.question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    record = {"domain": task.domain, "messages": messages, "answer": task.answer}
    if kind is Kind.INSTRUCTION:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": task.chosen}]})
    if kind is Kind.PREFERENCE:
        record |= {"chosen": task.chosen, "rejected": task.rejected}
    return record, files
