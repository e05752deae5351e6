# SPDX-License-Identifier: Apache-2.0
"""The video processor: frames to one composed picture, and this to normalised tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, load_video

from ixc_lightning.models.internlm_xcomposer2.image_processing import InternLMXComposer2ImageProcessor
from ixc_lightning.models.internlm_xcomposer2.tiling import partition_video
from ixc_lightning.models.internlm_xcomposer2.video import MAX_FRAMES, compose, sample_indices
from ixc_lightning.types import InputError


class InternLMXComposer2VideosKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """What a call may change; see the processor's arguments."""

    tile_size: int
    max_frames: int


class InternLMXComposer2VideoProcessor(BaseVideoProcessor):
    """Shows a video as one picture with all its frames, as InternLM-XComposer2.5 does.

    Files are decoded, and arrays of frames taken as they are; with ``do_sample_frames`` about one frame a
    second is kept, at most ``max_frames``.

    Args:
        tile_size: side of a tile in pixels.
        max_frames: most frames that are shown.
        **kwargs: further fields of transformers' video processors.
    """

    model_input_names: ClassVar = ["pixel_values_videos", "video_grid_hw"]
    valid_kwargs = InternLMXComposer2VideosKwargs
    tile_size = 560
    max_frames = MAX_FRAMES
    do_sample_frames = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD

    def fetch_videos(
        self, video_url_or_urls: Any, sample_indices_fn: Callable[..., Any] | None = None
    ) -> Any:
        """Frames and what is known about them, of one file or of each in a list.

        PyAV decodes, which this package needs in any case; transformers would ask for torchcodec.
        """
        if isinstance(video_url_or_urls, list):
            each = [self.fetch_videos(one, sample_indices_fn=sample_indices_fn) for one in video_url_or_urls]
            return [list(part) for part in zip(*each, strict=True)]
        return load_video(video_url_or_urls, backend="pyav", sample_indices_fn=sample_indices_fn)

    def sample_frames(self, metadata: VideoMetadata, **kwargs: Any) -> list[int]:
        """Indices of the frames to show.

        Raises:
            InputError: there are no frames, or their rate is not known.
        """
        if not metadata.fps:
            raise InputError(
                "the frame rate of a video is not known: give video_metadata with fps, or frames that are "
                "sampled already and do_sample_frames=False"
            )
        return sample_indices(
            int(metadata.total_num_frames), float(metadata.fps), max_frames=kwargs["max_frames"]
        )

    def _preprocess(
        self,
        videos: Sequence[Tensor],
        tile_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        **kwargs: Any,
    ) -> BatchFeature:
        """Compose and cut the videos (frames, 3, height, width), all in uint8."""
        tiler = InternLMXComposer2ImageProcessor(
            tile_size=tile_size, image_mean=image_mean, image_std=image_std
        )
        composed = [compose([_picture(frame) for frame in video], tile=tile_size) for video in videos]
        outputs = tiler.tiles([partition_video(picture, tile=tile_size) for picture in composed])
        return BatchFeature(
            {"pixel_values_videos": outputs["pixel_values"], "video_grid_hw": outputs["image_grid_hw"]}
        )


def _picture(frame: Tensor) -> Image.Image:
    if frame.dtype.is_floating_point or frame.shape[0] != 3:
        raise InputError(
            f"a video's frames must be RGB in uint8, not {frame.dtype} of shape {tuple(frame.shape)}"
        )
    return Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
