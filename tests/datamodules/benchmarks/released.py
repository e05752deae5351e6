# SPDX-License-Identifier: Apache-2.0
"""Small benchmarks written by hand in the schemas of the released files, with their oddities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.datamodules.sources.fixtures import picture, write_jsonl, write_parquet

COLOURS = ("red", "green", "blue", "white")


def clip(path: Path, frames: int = 6) -> None:
    """Write a short MP4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            image = np.full((32, 32, 3), 40 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def vl_rewardbench(folder: Path) -> Path:
    """Parquet with embedded pictures: PNG beside JPEG, ids that repeat, both rankings, marks in queries."""
    rows: list[dict[str, Any]] = [
        {"id": "RLAIF-V-0", "query": "<image>\nWhat is it?", "human_ranking": [0, 1]},
        {"id": "RLHF-7", "query": "What is it?", "human_ranking": [1, 0]},
        {"id": "hallucination_pair-3", "query": "Describe it.", "human_ranking": [1, 0]},
        {"id": "mathverse_1", "query": "<image>How many?", "human_ranking": [0, 1]},
        {"id": "mmmu-2", "query": "How many?", "human_ranking": [0, 1]},
        {"id": "wildvision-battle-9", "query": "Say it.", "human_ranking": [1, 0]},
        {"id": "45000", "query": "Say it in short.", "human_ranking": [0, 1]},
        {"id": "45000", "query": "Say it at length.", "human_ranking": [0, 1]},
    ]
    for number, row in enumerate(rows):
        form = "PNG" if number % 2 else "JPEG"
        row |= {
            "response": [f"The first answer {number}.", f"The second answer {number}."],
            "image": {"bytes": picture(COLOURS[number % 4], form, (28, 28)), "path": None},
            "models": ["a", "b"],
            "judge": "someone",
            "rationale": "",
            "query_source": "x",
            "ground_truth": "",
        }
    write_parquet(folder / "data/test-00000-of-00001.parquet", *rows)
    return folder


def vl_rewardbench_tagged(folder: Path) -> Path:
    """The file that the paper's authors score: JSON Lines with paths of pictures."""
    sources = ("wildvision-battle", "povid", "reasoning_tasks", "vlfeedback")
    rows = []
    for number, source in enumerate(sources):
        path = folder / "images" / source / f"{number}.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(COLOURS[number], size=(28, 28)))
        rows.append(
            {
                "id": f"x-{number}",
                "query": "What is it?",
                "response": ["One.", "Two."],
                "human_ranking": [number % 2, 1 - number % 2],
                "image_path": f"images/{source}/{number}.jpg",
            }
        )
    write_jsonl(folder / "combined_data_tagged.jsonl", *rows)
    return folder


def rewardbench(folder: Path) -> Path:
    """Both splits as Parquet; only the filtered one is the benchmark."""
    rows = [
        {
            "prompt": f"Question {number}: what does <b> mean?",
            "chosen": f"An answer {number}.",
            "chosen_model": "a",
            "rejected": f"Another answer {number}.",
            "rejected_model": "b",
            "subset": subset,
            "id": number,
        }
        for number, subset in enumerate(
            ["alpacaeval-easy", "llmbar-natural", "donotanswer", "hep-cpp", "math-prm"]
        )
    ]
    write_parquet(folder / "data/filtered-00000-of-00001.parquet", *rows)
    write_parquet(folder / "data/raw-00000-of-00001.parquet", *rows, *rows)
    return folder


def prior_sets(folder: Path) -> Path:
    """Three of the files of the prior sets, one of which is no part of the benchmark."""
    prompt = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello to you."},
        {"role": "user", "content": "And now?"},
    ]
    for name in ("anthropic_hhh", "shp", "pku_safer"):
        row = {"prompt": prompt, "chosen": "Wait.", "rejected": "Go.", "subset": "x"}
        write_parquet(folder / f"data/{name}-00000-of-00001.parquet", row)
    return folder


def rewardbench_2(folder: Path) -> Path:
    """Best of four, and two forms of a prompt with many right answers."""
    best_of = [
        {"id": str(number), "subset": subset, "chosen": ["Right."], "rejected": ["Wrong.", "False.", "No."]}
        for number, subset in enumerate(["Factuality", "Precise IF", "Math", "Safety", "Focus"])
    ]
    ties = [
        {"id": "ref:4", "subset": "Ties", "chosen": ["Red."], "rejected": ["Cat.", "Dog."]},
        {"id": "tied:4", "subset": "Ties", "chosen": ["Red.", "Blue.", "Green."], "rejected": ["Cat."]},
    ]
    rows = [
        {
            "prompt": f"Name a colour {row['id']}.",
            "num_correct": len(row["chosen"]),
            "num_incorrect": len(row["rejected"]),
            "total_completions": len(row["chosen"]) + len(row["rejected"]),
            "models": ["a"],
            "additional_metadata": {"category": None},
            **row,
        }
        for row in best_of + ties
    ]
    write_parquet(folder / "data/test-00000-of-00001.parquet", *rows)
    return folder


def _rm_bench_record(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "prompt": f"Question {number}?",
        "chosen": ["Yes.", "Yes, because of it.", "**Yes**, because of it."],
        "rejected": ["No.", "No, because of it.", "**No**, because of it."],
    }


def rm_bench(folder: Path) -> Path:
    """The file of all domains, whose ids repeat, and that of one domain, which holds the same again."""
    domains = ("chat", "code", "math", "safety-refuse", "safety-response")
    records = [{**_rm_bench_record(8), "domain": domain} for domain in domains]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "total_dataset.json").write_text(json.dumps(records, indent=1))
    (folder / "chat_filtered.json").write_text(json.dumps([{**_rm_bench_record(8), "error_key": "x"}]))
    return folder


def rm_bench_by_domain(folder: Path) -> Path:
    """The files of single domains alone, which lack the field of the domain."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("code", "safety-refuse"):
        (folder / f"{name}_filtered.json").write_text(json.dumps([_rm_bench_record(8)]))
    return folder


def multimodal_rewardbench(folder: Path) -> Path:
    """One JSON list with paths of pictures."""
    kinds = [
        ("pairs_3", "safety", "Output1"),
        ("toxic_1", "safety", "Output2"),
        ("math_9", "reasoning", "Output2"),
        ("code-1", "reasoning", "Output1"),
        ("vqa_2", "Knowledge", "Output2"),
        ("cor_1", "Correctness", "Output1"),
    ]
    records = []
    for number, (name, category, better) in enumerate(kinds):
        image = f"images/{name}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(picture(COLOURS[number % 4], "PNG", (28, 28)))
        records.append(
            {
                "ID": name,
                "Text": f"What about picture {number}?",
                "Image": image,
                "Output1": f"One {number}.",
                "Output2": f"Two {number}.",
                "Better": better,
                "Category": category,
            }
        )
    (folder / "all_data.json").write_text(json.dumps(records))
    return folder


def mm_rlhf_rewardbench(folder: Path) -> Path:
    """JSON Lines with a picture, a clip, and a clip as a folder of frames; ids are those of prompts."""
    for name in ("mcq/0.jpg", "long/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("red", size=(28, 28)))
    clip(folder / "video/2.mp4")
    for number in range(3):
        frame = folder / f"safety/frames/{number}.jpg"
        frame.parent.mkdir(parents=True, exist_ok=True)
        frame.write_bytes(picture(COLOURS[number], size=(28, 28)))
    media = [
        ("p0", {"image": "mcq/0.jpg"}),
        ("p0", {"image": "mcq/0.jpg"}),
        ("p1", {"image": "long/1.jpg"}),
        ("p2", {"video": "video/2.mp4"}),
        ("p3", {"video": "safety/frames"}),
    ]
    rows = [
        {
            "id": name,
            "prompt": "What happens?",
            "chosen": f"Much {number}.",
            "rejected": f"Little {number}.",
            "chosen_reason": "",
            "rejected_reason": "",
            **medium,
        }
        for number, (name, medium) in enumerate(media)
    ]
    write_jsonl(folder / "mm_reward_bench.jsonl", *rows)
    return folder


def video_rewardbench(folder: Path) -> Path:
    """JSON Lines with clips, and categories as people write them."""
    clip(folder / "videos/a.mp4")
    categories = ("Long-form Perception", "short_perception", "Knowledge", "Reasoning", "Safety")
    rows = [
        {
            "id": str(number),
            "video": "videos/a.mp4",
            "question": f"What happens {number}?",
            "chosen": "A light.",
            "rejected": "Nothing at all.",
            "category": category,
        }
        for number, category in enumerate(categories)
    ]
    write_jsonl(folder / "data.jsonl", *rows)
    return folder


BENCHMARKS: dict[str, Callable[[Path], Path]] = {
    "vl_rewardbench": vl_rewardbench,
    "rewardbench": rewardbench,
    "rewardbench_2": rewardbench_2,
    "rm_bench": rm_bench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "mm_rlhf_rewardbench": mm_rlhf_rewardbench,
    "video_rewardbench": video_rewardbench,
}
"""What writes each benchmark into a folder, by the stem of its recipe."""
SIZES = dict(zip(BENCHMARKS, (8, 5, 7, 5, 6, 5, 5), strict=True))
