# SPDX-License-Identifier: Apache-2.0
"""Videos as one picture: recorded frame indices and pixels, and clips without frames."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image
from transformers import AutoVideoProcessor

from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2VideoProcessor
from ixc_lightning.models.internlm_xcomposer2.tiling import partition_video
from ixc_lightning.models.internlm_xcomposer2.video import compose, sample_indices
from ixc_lightning.types import InputError
from tests.models.internlm_xcomposer2.reference import TILE, meta, synthetic, write_video


@pytest.mark.parametrize(
    "about", meta()["video"]["sampling"], ids=lambda about: f"{about['n']}@{about['fps']}"
)
def test_recorded_frame_indices(about):
    if "error" in about:  # the reference fails below half a frame a second
        assert sample_indices(about["n"], about["fps"]) == list(range(about["n"]))
    else:
        assert sample_indices(about["n"], about["fps"]) == about["sampled"]


@pytest.mark.parametrize(
    "about", meta()["video"]["composite"], ids=lambda about: f"{about['w']}x{about['h']}"
)
def test_recorded_compositions(about):
    frames = [synthetic(1050 + number, about["w"], about["h"]) for number in range(about["k"])]
    composed = compose(frames, tile=TILE)
    tiles = partition_video(composed, tile=TILE)
    assert (list(composed.size), list(tiles.size)) == (about["composite"], about["transformed"])
    assert hashlib.sha256(composed.tobytes()).hexdigest() == about["composite_sha"]
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == about["transformed_sha"]


def clip(frames=5, height=36, width=64):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_thirty_two_wide_frames_make_twenty_tiles():
    frames = [Image.new("RGB", (1920, 1080))] * 32
    assert partition_video(compose(frames, tile=560), tile=560).size == (560, 560 * 20)


def test_no_frames_are_refused():
    for attempt in (lambda: sample_indices(0, 30.0), lambda: compose([], tile=TILE)):
        with pytest.raises(InputError, match="without frames"):
            attempt()


def test_a_hair_of_a_frame_is_refused():
    with pytest.raises(InputError, match="1000 x 1 pixels is too thin"):
        compose([Image.new("RGB", (1000, 1))], tile=TILE)


def test_frames_are_sampled_unless_they_were_before():
    processor = InternLMXComposer2VideoProcessor(tile_size=TILE)
    about = {"total_num_frames": 5, "fps": 2.0}
    sampled = processor([clip()], video_metadata=[about])["video_grid_hw"]
    frames = [Image.fromarray(frame) for frame in clip()]
    assert sampled.tolist() == [
        [partition_video(compose(frames[::2], tile=TILE), tile=TILE).height // TILE, 1]
    ]
    taken = processor([clip()], do_sample_frames=False)["video_grid_hw"]
    assert taken.tolist() == [[partition_video(compose(frames, tile=TILE), tile=TILE).height // TILE, 1]]
    fewer = processor([clip(40)], video_metadata=[{"total_num_frames": 40, "fps": 1.0}], max_frames=4)
    assert fewer["video_grid_hw"][0, 0] < 6


def test_tiles_of_several_clips_follow_each_other():
    processor = InternLMXComposer2VideoProcessor(tile_size=TILE, do_sample_frames=False)
    clips = [clip(3), clip(4, 64, 36)]
    together = processor(clips)
    alone = [processor([one]) for one in clips]
    counts = [int(one["video_grid_hw"].prod()) + 1 for one in alone]
    parts = together["pixel_values_videos"].split(counts)
    assert all((part == one["pixel_values_videos"]).all() for part, one in zip(parts, alone, strict=True))


def test_files_are_decoded_and_sampled(tmp_path):
    processor = InternLMXComposer2VideoProcessor(tile_size=TILE)
    path = str(write_video(tmp_path / "clip.mp4"))  # three seconds: three frames of 84 pixels, strip and gap
    outputs = processor([path])
    assert outputs["video_grid_hw"].tolist() == [[4, 1]]
    assert processor([path, path])["video_grid_hw"].tolist() == [[4, 1]] * 2
    # at half the size, a frame stands in rows 20 to 62 of each 67, and the clip grows brighter
    rows = outputs["pixel_values_videos"][1:].mean((1, 3)).flatten()
    assert rows[40] < rows[107] < rows[174]


def test_a_clip_without_a_rate_is_refused():
    with pytest.raises(InputError, match="frame rate"):
        InternLMXComposer2VideoProcessor(tile_size=TILE)([clip()], video_metadata=[{"total_num_frames": 5}])


def test_floating_point_frames_are_refused():
    with pytest.raises(InputError, match="RGB in uint8"):
        InternLMXComposer2VideoProcessor(tile_size=TILE, do_sample_frames=False)([clip() / 255.0])


def test_the_processor_is_saved_and_found_again(tmp_path):
    InternLMXComposer2VideoProcessor(tile_size=112, max_frames=7).save_pretrained(tmp_path)
    again = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(again) is InternLMXComposer2VideoProcessor
    assert (again.tile_size, again.max_frames, again.do_sample_frames) == (112, 7, True)
