# SPDX-License-Identifier: Apache-2.0
"""One iteration of on-policy training: this package, and two plain ways to do the same.

``python benchmarks/ppo_step.py`` takes about half an hour on two quiet cores and needs Linux. It prints, for
each algorithm and number of samples, the ratios of wall time and of CPU time, which other programs on the
machine disturb less, the ratio of the peak memories, how far apart the trained weights are, by rounding, and
the ceiling: n (P + T) / (P + n T), the ratio of the tokens that the language model reads. More than that
is possible, by the tower and the attention, and less, because a step of decoding is bound by the reading of
weights. ``--help`` tells what can be changed.

ours      One look at each picture for policy, reference, critic and reward model, generation included; every
          role reads a prompt once for its answers, and so does generation; logits exist for one chunk of the
          response tokens at a time.
apart     Every network encodes the pictures by itself in each of its passes, once for each prompt, and reads
          the prompt with each answer. Log-probabilities are taken from the logits of all places of prompt and
          response. Transformers' ``generate`` answers as many copies of the prompt.
repeated  As ``apart``, but pictures are encoded for each answer, as it is where the pixels are repeated with
          the prompt; generation alone encodes a picture once for all answers.

All run the same module on the same prompts, answers and settings, and take turns. The model is an
InternVL of a few million parameters with proportions like those of a 7B model: per picture token the weights
of the tower are used about a third as much as those of the language model, the head's a sixth. Memory is that
of a fresh process for each way: the most that was resident in the iteration beyond what was before it, so
that weights are left out.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from _timing import Spent, compare, describe, tell
from PIL import Image
from transformers import InternVLForConditionalGeneration

from ixc_lightning.datamodules import PromptDataModule
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.functional.logprobs import in_rows
from ixc_lightning.functional.masking import join
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.functional.sft import predicting_mask
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.tiny import tiny_config, tiny_processor
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.modules import FixedKL, GRPOModule, OnPolicyModule, PPOModule, RLOOModule
from ixc_lightning.modules import learning as learning_module
from ixc_lightning.modules import reading as reading_module
from ixc_lightning.modules.experience import Reading
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.rollout import Sampling, TransformersEngine
from ixc_lightning.types import PromptBatch, Rollout

WAYS = ("ours", "apart", "repeated")
PIXELS, PATCH, FOLD = 448, 14, 0.5  # 1,024 patches, folded to 256 tokens
WORDS = "what number is shown here and how many digits are there in the picture please answer"
KIB_PER_MIB = 1024


ALGORITHMS = {"ppo": PPOModule, "rloo": RLOOModule, "grpo": GRPOModule}


class Timed(OnPolicyModule):
    """Keeps the seconds and the most memory of its last iteration, and the weights behind it."""

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """One iteration."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start, busy = status("VmRSS"), perf_counter(), process_time()
        out = super().training_step(batch, batch_idx)
        self.prompt_tokens = float(batch.prompts.mask.sum() / len(batch.keys))
        self.spent = Spent(perf_counter() - start, process_time() - busy)
        self.memory = (status("VmHWM") - before) / KIB_PER_MIB
        return out


class ApartPictures(Pictures):
    """Pictures that every role encodes anew whenever it is called, each picture once."""

    def all(self, role: str) -> Visuals | None:
        """The pictures of all prompts, as the role sees them."""
        self.seen.clear()
        return super().all(role)


class RepeatedPictures(ApartPictures):
    """Pictures, one for each prompt, that every role encodes anew for each answer whenever it is called."""

    def of(self, role: str, prompt_index: torch.Tensor) -> Visuals | None:
        """The pictures of some prompts, in the given order, as the role sees them."""
        media = {name: pixels[prompt_index] for name, pixels in self.prompts.media.items()}
        return self.roles[role].encode(take_rows(self.prompts, prompt_index)._replace(media=media))


class Apart(Timed):
    """The same training, where nobody shares what it saw."""

    pictures = ApartPictures

    def look(self, batch: PromptBatch) -> Pictures:
        """The batch's pictures, for every role apart."""
        roles = super().look(batch).roles
        return self.pictures(batch.prompts, roles, {name: name for name in roles})


class Repeated(Apart):
    """The same training, where every answer brings its own pixels."""

    pictures = RepeatedPictures


def plain_tokens(
    name: str, policy: Backbone, rollout: Rollout, pictures: Pictures, *, temperature: float
) -> Reading:
    """As ``read_tokens``, from the logits of all places."""
    sequences = join(rollout.prompts, rollout.responses)
    hidden = policy(
        sequences.ids, sequences.mask, sequences.token_types, pictures.of(name, rollout.prompt_index)
    )
    every = (policy.logits(hidden).float() / temperature).log_softmax(dim=-1)
    places, mask = predicting_mask(sequences.response_mask), rollout.responses.mask
    said = every[:, :-1].gather(-1, sequences.ids[:, 1:, None]).squeeze(-1)
    entropy = -(every.exp() * every).sum(dim=-1)
    return Reading(in_rows(said[places[:, :-1]], mask), in_rows(entropy[places], mask))


@contextmanager
def as_plain(way: str) -> Iterator[None]:
    """Compute log-probabilities in the given way."""
    if way == "ours":
        yield
        return
    with (
        patch.object(learning_module, "read_tokens", plain_tokens),
        patch.object(reading_module, "read_tokens", plain_tokens),
    ):
        yield


def status(name: str) -> int:
    """A size of this process in KiB, as Linux says it."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """Write the model with fresh weights, and its processor."""
    processor = tiny_processor()
    config = tiny_config(processor.tokenizer)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = args.width, args.layers, 3 * args.width
    text.layer_types = ["full_attention"] * args.layers
    text.vocab_size, text.max_position_embeddings = args.vocabulary, 4096
    text.initializer_range = vision.initializer_range = args.width**-0.5
    vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size = (
        args.tower_width,
        2,
        4 * args.tower_width,
    )
    vision.image_size, vision.patch_size = [PIXELS, PIXELS], [PATCH, PATCH]
    config.downsample_ratio = FOLD
    config.image_seq_length = processor.image_seq_length = int(PIXELS // PATCH * FOLD) ** 2
    processor.image_processor.size = {"height": PIXELS, "width": PIXELS}
    torch.manual_seed(0)
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_prompts(folder: Path, count: int) -> None:
    """Write as many prompts with a picture each."""
    rng = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(file, "PNG")
        content = [{"type": "image", "file": "00.png"}, {"type": "text", "text": WORDS}]
        messages = [{"role": "user", "content": content}]
        record = {"id": str(number), "source": "benchmark", "domain": "reading", "messages": messages}
        return Sample(f"{number:06d}", record, {"00.png": file.getvalue()})

    write_shards(map(sample, range(count)), folder, kind="prompt")


def iterate(way: str, folder: Path, args: argparse.Namespace) -> Any:
    """One iteration from the same start; the module behind it."""
    model, name, is_plain = str(folder / "model"), args.algorithm, way != "ours"
    roles = {"reward_model": partial(RewardModel, model, sharing="off" if is_plain else "auto")}
    optimizer = partial(torch.optim.AdamW, lr=1e-4, eps=1e-3)
    if name == "ppo":
        roles |= {"critic": partial(Critic, model, head="zero"), "critic_optimizer": optimizer}
    timed = {"ours": Timed, "apart": Apart, "repeated": Repeated}[way]
    torch.manual_seed(0)
    module = type(timed.__name__, (timed, ALGORITHMS[name]), {})(
        partial(Backbone, model, head=True),
        **roles,
        optimizer=optimizer,
        kl=FixedKL(0.05),
        sampling=Sampling(n=args.samples, min_tokens=args.tokens, max_tokens=args.tokens),
        engine=TransformersEngine(sharing="off" if is_plain else "auto"),
        sharing="off" if is_plain else "auto",
        epochs=args.epochs,
        minibatch_size=args.prompts * args.samples,
        rows_at_once=args.rows,
    )
    run = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with as_plain(way):
        run.fit(module, PromptDataModule(model, train=str(folder / "prompts"), batch_size=args.prompts))
    return module


def memory_of(way: str, folder: Path, args: argparse.Namespace) -> float:
    """The iteration's memory in MiB, in a process of its own."""
    own = ["--memory-of", way, "--folder", str(folder), "--runs", f"{args.algorithm}:{args.samples}"]
    command = [sys.executable, __file__, *sys.argv[1:], *own]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ended.stdout.split()[-1])


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One algorithm against both plain ways."""
    spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
    for number in range(args.rounds + 1):
        modules = {way: iterate(way, folder, args) for way in WAYS[:: 1 if number % 2 else -1]}
        if number:  # the first round warms up
            for way, module in modules.items():
                spent[way].append(module.spent)
    weights = {way: module.state_dict() for way, module in modules.items()}
    memory = {way: memory_of(way, folder, args) for way in WAYS}
    prompt, n, results = modules["ours"].prompt_tokens, args.samples, []
    ceiling = n * (prompt + args.tokens) / (prompt + n * args.tokens)
    for way in WAYS[1:]:
        apart = max(
            float((weight - weights[way][name]).abs().max()) for name, weight in weights["ours"].items()
        )
        result = compare(spent, a="ours", b=way, ceiling=ceiling)
        kept = memory["ours"] / memory[way]
        print(
            f"{args.algorithm}, {n} samples, against {way}: {describe(result)}; {kept:.2f} of its memory, "
            f"{memory['ours']:.0f} MiB; weights differ by {apart:.1e}",
            flush=True,
        )
        settings = {"algorithm": args.algorithm, "samples": n, "prompt": round(prompt), "answer": args.tokens}
        results.append({**settings, "peak memory": round(kept, 2), **result})
    return results


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["ppo:1", "ppo:4", "rloo:4", "grpo:8"],
        help="algorithms, ppo, rloo or grpo, each with the samples of a prompt",
    )
    parser.add_argument(
        "--prompts", type=int, default=4, help="prompts of the iteration, with a picture each"
    )
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rows", type=int, default=8, help="answers in a forward pass")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the answers")
    parser.add_argument("--width", type=int, default=256, help="of the language model")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--tower-width", type=int, default=112, help="of the two layers of the tower")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens of the language head")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if args.folder is None:
            write_model(folder / "model", args)
            write_prompts(folder / "prompts", args.prompts)
        for run in args.runs:
            args.algorithm, args.samples = run.split(":")[0], int(run.split(":")[1])
            if args.memory_of:
                print(iterate(args.memory_of, folder, args).memory)
                return
            results += measure(folder, args)
    tell("ppo_step", results)


if __name__ == "__main__":
    main()
