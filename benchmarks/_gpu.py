# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks that need a GPU share: a model of 7B in shape, memory, and the plan beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from math import isnan, nan
from typing import Any, NamedTuple

import torch
from _timing import machine, tell
from torch import nn
from transformers import Qwen2_5_VLConfig

from ixc_lightning.models.tiny import PICTURE_TOKENS, tiny_processor
from ixc_lightning.planning import Forecast, Hardware

GIB = 2**30
SHAPE = {
    "text_config": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "tokens_per_second": 2},
}
"""What differs in Qwen2.5-VL-7B from the defaults of its config."""
TINY = {
    "text_config": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 128,
        "depth": 2,
        "num_heads": 4,
        "fullatt_block_indexes": [1],
    },
}
TINY_LENGTHS = (64, 8)
"""Tokens of prompt and response with ``--tiny``."""


class Peak(NamedTuple):
    """Most memory of a piece of work, GiB; not a number without a GPU.

    Attributes:
        allocated: by tensors. This is what a plan counts.
        reserved: by PyTorch for them.
    """

    allocated: float
    reserved: float


def options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with those that all have; ends the program where there is no GPU for what they ask."""
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=256, help="tokens of a response")
    parser.add_argument("--hold", action="store_true", help="to the memory of the card that it is meant for")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts; no GPU is needed")
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.tiny:
        args.prompt, args.response = TINY_LENGTHS
    elif args.device.type == "cpu":
        print(
            "no CUDA device: this needs one NVIDIA GPU, with the memory that the head of the script names, "
            "and pip install 'ixc-lightning[quant]'; --tiny shows on any machine that it runs",
            file=sys.stderr,
        )
        sys.exit(2)
    return args


def write_model(folder: str, *, tiny: bool) -> None:
    """Write the config, and a processor with a small vocabulary: only text is read, and nothing is loaded."""
    processor = tiny_processor()
    token = processor.tokenizer.convert_tokens_to_ids
    shape = TINY if tiny else SHAPE
    ends = {"bos_token_id": None, "eos_token_id": token("<|end|>"), "pad_token_id": token("<pad>")}
    Qwen2_5_VLConfig(
        text_config={**shape["text_config"], **ends},
        vision_config=shape["vision_config"],
        image_token_id=token(PICTURE_TOKENS["context_image_token"]),
        video_token_id=token(PICTURE_TOKENS["video_token"]),
        vision_start_token_id=token(PICTURE_TOKENS["start_image_token"]),
        vision_end_token_id=token(PICTURE_TOKENS["end_image_token"]),
    ).save_pretrained(folder)
    processor.save_pretrained(folder)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network for a plan: its sizes, and no weights."""
    with torch.device("meta"):
        return build()


def restart(*, empty: bool = True) -> None:
    """Have the peak of the memory begin anew, by default with nothing reserved for what ran before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        if empty:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> Peak:
    """The most since the last ``restart``."""
    if not torch.cuda.is_available():
        return Peak(nan, nan)
    torch.cuda.synchronize()
    return Peak(torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB)


def beside() -> float:
    """GiB of the GPU that are not PyTorch's tensors: the CUDA context, and other programs, if there are."""
    if not torch.cuda.is_available():
        return nan
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / GIB


def hold_to(gib: float) -> None:
    """Let PyTorch have no more than a GPU of that size would: what does not fit there ends with an error."""
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1] / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gib - beside()) / total))


def planned(forecast: Forecast, hardware: Hardware) -> float:
    """GiB of tensors at the fullest moment by the plan, to be held against ``Peak.allocated``."""
    return forecast.peak / GIB - hardware.reserve_gb


def describe_plan(forecast: Forecast) -> str:
    """What the fullest moment of a plan is made of."""
    fullest = max(forecast.phases, key=lambda phase: phase.total)
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in fullest.kinds.items() if size)
    return f"{fullest.name}: {kinds}"


def describe_peak(measured: Peak, plan: float, limit: float) -> str:
    """A peak for a person, beside the plan and the card that it should fit on."""
    whole = measured.reserved + beside()
    fits = "unknown" if isnan(whole) else "yes" if whole <= limit else "no"
    return (
        f"planned {plan:.2f} GiB, measured {measured.allocated:.2f}, ratio {plan / measured.allocated:.2f}; "
        f"{measured.reserved:.2f} reserved, {whole:.2f} with the CUDA context; within {limit:g} GB: {fits}"
    )


def rounded(number: float, digits: int = 2) -> float | None:
    """A number for a table; None for what was not measured."""
    return None if isnan(number) else round(number, digits)


def finish(name: str, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the line of JSON; what ran at full size on a GPU is kept as well."""
    if args.tiny:
        print(json.dumps({"name": name, "results": results, "machine": machine()}))
    else:
        tell(name, results)
