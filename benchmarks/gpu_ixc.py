# SPDX-License-Identifier: Apache-2.0
"""InternLM-XComposer2.5 at its full size on one GPU: speed, memory, and whether attention functions agree.

``python benchmarks/gpu_ixc.py`` needs a GPU with 48 GB; ``--tiny --device cpu`` shows in seconds that it
runs. The weights are random, which changes neither speed nor memory. For a picture of 9 tiles and one of 24
(the release's settings of ``hd_num``), with 64 tokens of text behind it, it prints tokens per second and peak
memory of a forward pass of the whole model, tower included, and of the language model alone, for each
attention function in bfloat16; and how far the hidden states of each lie from those of ``sdpa``, beside what
bfloat16 itself does to them: their distance from float32. It ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from transformers import __version__ as transformers_version

from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2Config
from ixc_lightning.models.internlm_xcomposer2.modeling import InternLMXComposer2Model

GRIDS = {9: (3, 3), 24: (4, 6)}
"""Rows and columns of tiles, by ``hd_num``."""
TEXT = 64
TINY = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "plora_rank": 8,
        "plora_alpha": 8,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
    },
}


def build(*, tiny: bool, device: torch.device, dtype: torch.dtype, attention: str) -> InternLMXComposer2Model:
    """The model with random weights, the same ones for every attention function."""
    config = InternLMXComposer2Config(**(TINY if tiny else {}))
    config._attn_implementation = attention
    torch.manual_seed(0)
    with torch.device(device):
        return InternLMXComposer2Model(config).to(dtype).eval()


def inputs(model: InternLMXComposer2Model, grid: tuple[int, int]) -> dict[str, Tensor]:
    """A picture of so many tiles, and text behind it."""
    device, side = model.device, model.config.vision_config.image_size
    generator = torch.Generator(device).manual_seed(1)
    tiles = grid[0] * grid[1] + 1
    pixels = torch.randn(tiles, 3, side, side, generator=generator, device=device, dtype=model.dtype)
    grids = torch.tensor([grid], device=device)
    with torch.no_grad():
        count = len(model.get_image_features(pixels, grids).pooler_output[0])
    text = torch.randint(10, 1000, (TEXT,), generator=generator, device=device)
    picture = torch.full((count,), model.config.image_token_id, device=device)
    ids = torch.cat([picture, text]).unsqueeze(0)
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_hw": grids}


def spent(work: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float | None]:
    """Median seconds, and the peak of the memory in GiB on a GPU."""
    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = perf_counter()
        work()
        wait(device)
        seconds.append(perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return median(seconds), peak


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def distance(one: Tensor, other: Tensor) -> float:
    """Mean distance of hidden states, relative to their size."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


@torch.no_grad()
def main() -> None:
    """Measure each attention function and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", nargs="+", default=["sdpa", "flex_attention"], help="sdpa comes first")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    states: dict[tuple[str, int], Tensor] = {}
    rows = []
    for attention in options.attention:
        model = build(tiny=options.tiny, device=device, dtype=torch.bfloat16, attention=attention)
        for tiles, grid in GRIDS.items():
            given = inputs(model, grid)
            features = model.get_image_features(given["pixel_values"], given["image_grid_hw"])
            encoded = {"input_ids": given["input_ids"], "mm_encoder_outputs": {"image": features}}
            whole, peak = spent(partial(model, **given), device, options.repeats)
            language, _ = spent(partial(model, **encoded), device, options.repeats)
            states[attention, tiles] = model(**given).last_hidden_state
            tokens = given["input_ids"].numel()
            rows.append(
                {
                    "attention": attention,
                    "hd_num": tiles,
                    "tokens": tokens,
                    "tokens_per_second": tokens / whole,
                    "language_tokens_per_second": tokens / language,
                    "peak_gib": peak,
                    "distance_from_sdpa": distance(states[attention, tiles], states["sdpa", tiles]),
                }
            )
        del model
    exact = build(tiny=options.tiny, device=device, dtype=torch.float32, attention="sdpa")
    for row in rows:
        model_inputs = inputs(exact, GRIDS[row["hd_num"]])
        row["distance_from_float32"] = distance(
            states[row["attention"], row["hd_num"]], exact(**model_inputs).last_hidden_state
        )
    for row in rows:
        print(
            f"{row['attention']:<16} hd_num {row['hd_num']:>2}  {row['tokens']:>6} tokens  "
            f"{row['tokens_per_second']:>9.0f}/s, "
            f"language model {row['language_tokens_per_second']:>9.0f}/s, "
            f"peak {row['peak_gib'] or 0:.1f} GiB; distance from sdpa {row['distance_from_sdpa']:.1e}, "
            f"from float32 {row['distance_from_float32']:.1e}"
        )
    versions = {"torch": torch.__version__, "transformers": transformers_version}
    print(json.dumps({"name": "gpu_ixc", "machine": name, "versions": versions, "rows": rows}))


if __name__ == "__main__":
    main()
