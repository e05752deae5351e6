# SPDX-License-Identifier: Apache-2.0
"""One process of a fit that ``tests.models.test_sharding`` starts, alone or together with a second one."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from ixc_lightning.callbacks import HuggingFaceExport
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.functional.sft import predict_tokens, sft_loss
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.modules import RewardModule, SFTModule, sft
from tests.digits import instruction_data, preference_data, trainer

STEPS = 3
LR = 1e-3
PER_STEP = 4  # records of all ranks together
TIMEOUT = timedelta(seconds=30)  # a hang becomes an error


class Gloo(ModelParallelStrategy):
    """The strategy under test, with a limit on how long the ranks wait for each other."""

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, timeout=TIMEOUT)


class Flat(FSDPStrategy):
    """Torch's first FSDP, which Lightning keeps from CPUs, by decoder layers."""

    def __init__(self, world: int) -> None:
        super().__init__(process_group_backend="gloo", timeout=TIMEOUT)

    def _setup_model(self, model: Any) -> FullyShardedDataParallel:
        backbone = getattr(model.model, "backbone", model.model)
        layers = ModuleWrapPolicy({type(layer) for layer in backbone.decoder_layers()})
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True, auto_wrap_policy=layers
        )


class Notes(Callback):
    """Keeps the mean loss of all ranks, and the norm of the gradient, at every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"].detach()
        self.losses.append(trainer.strategy.reduce(loss, reduce_op="mean").item())
        self.norms.append(trainer.logged_metrics["train/gradient_norm"].item())


def ordered(data: L.LightningDataModule, part: slice) -> None:
    """Make every step of text and pictures in turn, and give the ``part`` of it that is this rank's."""

    def loader() -> DataLoader:
        dataset = ShardDataset(data.sources[0].shards, kind=data.kind)
        kinds = [dataset.modality(index) for index in range(len(dataset))]
        text = [index for index, kind in enumerate(kinds) if kind == "text"]
        media = [index for index, kind in enumerate(kinds) if kind != "text"]
        turns = [index for pair in zip(text, media, strict=False) for index in pair]
        steps = [turns[start : start + PER_STEP] for start in range(0, 2 * STEPS * PER_STEP, PER_STEP)]
        order = [step[part] for step in steps] * 10
        return DataLoader(dataset, batch_sampler=order, collate_fn=data.collator())

    data.train_dataloader = loader


def main(options: dict[str, Any]) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    out, digits, model = Path(options["out"]), Path(options["data"]), options["model"]
    reward = options["task"] == "reward"
    turns = [slice(0, None, 2), slice(1, None, 2)]  # text, and pictures
    given = {
        "freeze": options.get("freeze", ["vision", "projector"]),
        "vision_patches_at_once": options.get("vision_patches_at_once"),
        "frozen_tower": options.get("frozen_tower", "whole"),
    }
    strategy = Flat if options.get("flat") else Gloo
    own_steps = options.get("steps", STEPS)

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[L.Trainer, Any, Notes]:
        torch.manual_seed(0)
        # A large ε: gradients that are zero but for rounding (of a key's bias) must not become whole steps.
        optimizer = partial(torch.optim.AdamW, lr=LR, eps=1e-3)
        dtype = options.get("compute_dtype", "float32")
        if reward:
            module = RewardModule(
                partial(RewardModel, model, **given), optimizer=optimizer, compute_dtype=dtype
            )
            data = preference_data(digits, model, val=None)
        else:
            build = partial(Backbone, model, head=True, **given)
            if "chunk" in options:
                sft.predict_tokens = partial(predict_tokens, chunk=options["chunk"])
            module = SFTModule(build, optimizer=optimizer, compute_dtype=dtype)
            data = instruction_data(digits, model, val=None)
        ordered(data, turns[rank] if world > 1 else slice(None))
        notes = Notes()
        run = trainer(
            out,
            max_steps=steps,
            strategy=strategy(world) if world > 1 else "auto",
            devices=world,
            inference_mode=False,
            gradient_clip_val=None if strategy is Flat else 1.0,
            use_distributed_sampler=False,
            callbacks=[
                notes,
                HuggingFaceExport(str(out / "export"), enabled=checkpoint is None and strategy is Gloo),
            ],
        )
        run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return run, (module, data), notes

    run, (module, data), notes = fit(own_steps)
    if strategy is Flat:  # it gathers weights in its own steps and for checkpoints alone
        run.save_checkpoint(out / "last.ckpt")
        if rank == 0:
            (out / "result.json").write_text(json.dumps({"losses": notes.losses, "norms": notes.norms}))
        return
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        output = module.score(batch)[0] if reward else sft_loss(module.predict_responses(batch)[0].losses)
    text_only = [None] * world
    if world > 1:
        torch.distributed.all_gather_object(text_only, not batch.prompts.media)
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()
    result = {
        "steps": STEPS,
        "losses": notes.losses,
        "norms": notes.norms,
        "text_only_ranks": text_only,
        "output_dtype": str(output.dtype),
        "sharded": [name for name, p in module.named_parameters() if isinstance(p.data, DTensor)],
        "weight_dtypes": sorted({str(p.dtype) for p in module.parameters() if p.requires_grad}),
    }
    run.save_checkpoint(out / "last.ckpt")
    if "resume_from" in options:
        again = fit(STEPS + 2, out / options["resume_from"])
        result["resumed_step"], result["resumed_losses"] = again[0].global_step, again[2].losses
    if rank == 0:
        (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
