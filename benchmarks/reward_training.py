# SPDX-License-Identifier: Apache-2.0
"""Training of a reward model: ours against TRL's ``RewardTrainer`` on text, and against padding on pictures.

``python benchmarks/reward_training.py`` takes about half an hour on two quiet cores and prints how many times
as many pairs a second ours trains on, in the median over the rounds and at the least and the most. The
ceiling is the ratio of the tokens that both compute: of text without TRL's padding, which depends on its
order, of pictures with it. More is possible, because attention shrinks with the square of the length.
``--help`` tells what can be changed.

text    One epoch over the same conversations in TRL's format, through each side's own trainer: TRL reads its
        tokenised rows from memory, ours reads shards and encodes them on the way. The same network with the
        same weights, a score head over the last token, AdamW, the same learning rate, float32, no
        checkpointing of activations, no dropout, gradients clipped to 1. First an epoch each with a learning
        rate of 0: the mean losses must agree, or the two would not do the same work.
image   A step of optimisation on batches in memory, ours against the plain way of trainers that know nothing
        of pairs: every sequence padded to the longest of the batch, and its picture encoded for it alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from _judge import build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase, Qwen2Config

from ixc_lightning.datamodules import PreferenceDataModule
from ixc_lightning.datamodules.sources import trl as trl_format
from ixc_lightning.functional.masking import join
from ixc_lightning.functional.packing import Trees, pairs
from ixc_lightning.functional.preference import pairwise_loss
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.models import RewardModel
from ixc_lightning.models.tiny import CHAT_TEMPLATE, LEXICON, tiny_tokenizer
from ixc_lightning.modules import RewardModule

PROMPT, RESPONSE = (500, 1500), (100, 300)
"""Fewest and most tokens."""
SAME_LOSS = 1e-5
CLIP = 1.0


class Losses(L.Callback):
    """The losses of the steps."""

    def __init__(self) -> None:
        self.of_steps: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep that of one step; Lightning calls with trainer, module, outputs and more."""
        self.of_steps.append(args[2]["loss"].item())


class Text(NamedTuple):
    """The conversations as TRL takes them and as shards, and the network that learns from them."""

    rows: list[dict[str, Any]]
    shards: str
    model: Path
    tokens: dict[str, int]


def write_text(folder: Path, args: argparse.Namespace) -> Text:
    """Conversations of random words, and a text model with fresh weights."""
    tokenizer, draw, words = chat_tokenizer(), random.Random(0), LEXICON.split()
    rows, lengths = [], []
    for _ in range(args.steps * args.pairs):
        lengths.append((draw.randint(*PROMPT), draw.randint(*RESPONSE), draw.randint(*RESPONSE)))
        prompt, chosen, rejected = (" ".join(draw.choices(words, k=length)) for length in lengths[-1])
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    source, shards, model = folder / "pairs.jsonl", folder / "shards", folder / "model"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trl_format.convert(str(source), str(shards))
    text_model(model, tokenizer, layers=args.layers, width=args.width)
    once = sum(map(sum, lengths))
    twice = once + sum(prompt for prompt, _, _ in lengths)
    return Text(rows, str(shards), model, {"ours": once, "twice": twice})


def chat_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer with its chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.model_max_length = CHAT_TEMPLATE, 4096
    return tokenizer


def text_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int) -> None:
    """A reward model over a Qwen2, as a folder that both sides load."""
    Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=width**-0.5,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    judge = RewardModel(str(folder), weights="random", pooling="last", freeze=())
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_ours(text: Text, *, pairs_at_once: int, rate: float) -> float:
    """One epoch by Lightning; the mean loss."""
    losses = Losses()
    data = PreferenceDataModule(str(text.model), train=text.shards, batch_size=pairs_at_once)
    module = RewardModule(
        partial(RewardModel, str(text.model), freeze=()),
        optimizer=partial(AdamW, lr=rate, weight_decay=0.0),
    )
    L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[losses],
        gradient_clip_val=CLIP,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    return sum(losses.of_steps) / len(losses.of_steps)


def train_theirs(text: Text, rows: Any, out: Path, *, pairs_at_once: int, rate: float) -> float:
    """One epoch by TRL; the mean loss."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        output_dir=str(out),
        per_device_train_batch_size=pairs_at_once,
        num_train_epochs=1,
        learning_rate=rate,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=CLIP,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    judge = AutoModelForSequenceClassification.from_pretrained(text.model, num_labels=1, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(text.model)
    return RewardTrainer(judge, config, train_dataset=rows, processing_class=tokenizer).train().training_loss


def tokenised(text: Text) -> Any:
    """The rows as TRL keeps them once it has applied the chat template."""
    from datasets import Dataset

    tokenizer = chat_tokenizer()
    return Dataset.from_list(
        [
            {
                f"{name}_ids": tokenizer.apply_chat_template(row["prompt"] + row[name], return_dict=False)
                for name in ("chosen", "rejected")
            }
            for row in text.rows
        ]
    )


def compare_text(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The epochs in turn, after the two that show that the work is the same."""
    text = write_text(folder, args)
    rows = tokenised(text)
    ways: dict[str, Callable[..., float]] = {
        "ours": partial(train_ours, text, pairs_at_once=args.pairs),
        "TRL RewardTrainer": partial(train_theirs, text, rows, folder / "out", pairs_at_once=args.pairs),
    }
    start = {name: way(rate=0.0) for name, way in ways.items()}
    apart = abs(start["ours"] - start["TRL RewardTrainer"])
    print(f"text: mean loss before training {start['ours']:.6f}, theirs differs by {apart:.1e}", flush=True)
    if apart > SAME_LOSS:
        raise RuntimeError("the two do not compute the same loss, so their times cannot be compared")
    spent = take_turns({name: partial(way, rate=1e-4) for name, way in ways.items()}, rounds=args.rounds)
    ceiling = text.tokens["twice"] / text.tokens["ours"]
    return {"kind": "text", **compare(spent, a="ours", b="TRL RewardTrainer", ceiling=ceiling)}


def step(judge: RewardModel, optimiser: AdamW, batches: list[Trees], score: Callable[..., Any]) -> None:
    """A step of optimisation on each batch."""
    for trees in batches:
        optimiser.zero_grad()
        pairwise_loss(*score(judge, trees).chunk(2)).backward()
        clip_grad_norm_(judge.parameters(), CLIP)
        optimiser.step()


def shared(judge: RewardModel, trees: Trees) -> torch.Tensor:
    """Scores where prompt and picture are read once for both responses."""
    return judge(trees, judge.encode(trees.prompts))


def padded(judge: RewardModel, trees: Trees) -> torch.Tensor:
    """Scores of padded sequences, each with a picture of its own."""
    pictures = trees.prompts.media["pixel_values"][trees.prompt_index]
    prompts = take_rows(trees.prompts, trees.prompt_index)._replace(media={"pixel_values": pictures})
    return judge(join(prompts, trees.responses), judge.encode(prompts))


def compare_images(args: argparse.Namespace) -> dict[str, Any]:
    """The steps in turn, after a look at the scores of both."""
    judge, draw = build_judge(layers=args.layers, width=args.width), random.Random(1)
    batches, once = [], 0
    for _ in range(args.steps):
        lengths = [[draw.randint(*span) for _ in range(args.pairs)] for span in (PROMPT, RESPONSE, RESPONSE)]
        once += sum(map(sum, lengths))
        prompts = prompts_of(lengths[0], judge, kind="image")
        batches.append(pairs(prompts, *map(responses_of, lengths[1:])))
    with torch.no_grad():
        apart = (shared(judge, batches[0]) - padded(judge, batches[0])).abs().max().item()
    optimiser = AdamW([weight for weight in judge.parameters() if weight.requires_grad], lr=1e-5)
    ways = {
        name: partial(step, judge, optimiser, batches, score)
        for name, score in (("ours", shared), ("padded", padded))
    }
    print(f"image: scores differ by {apart:.1e} before training", flush=True)
    computed = sum(
        trees.responses.mask.shape[0]
        * join(take_rows(trees.prompts, trees.prompt_index), trees.responses).ids.shape[1]
        for trees in batches
    )
    spent = take_turns(ways, rounds=args.rounds)
    return {"kind": "image", **compare(spent, a="ours", b="padded", ceiling=computed / once)}


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often they take turns")
    parser.add_argument("--steps", type=int, default=6, help="of an epoch")
    parser.add_argument("--pairs", type=int, default=4, help="of a batch")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--width", type=int, default=256, help="of the language model")
    parser.add_argument("--kinds", nargs="+", default=["text", "image"], choices=["text", "image"])
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    results = []
    if "text" in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare_text(Path(folder), args))
    if "image" in args.kinds:
        results.append(compare_images(args))
    for result in results:
        pairs_a_second = args.steps * args.pairs / result["a"]["seconds"]
        print(f"{result['kind']}: {describe(result)}; ours {pairs_a_second:.2f} pairs/s")
    tell("reward_training", [{"batch": args.pairs, **result} for result in results])


if __name__ == "__main__":
    main()
