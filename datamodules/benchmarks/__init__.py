# SPDX-License-Identifier: Apache-2.0
"""The reward benchmarks as released: one reader a file, and the datamodule that serves their items."""

from ixc_lightning.datamodules.benchmarks.datamodule import BenchmarkDataModule as BenchmarkDataModule
from ixc_lightning.datamodules.benchmarks.mm_rlhf_rewardbench import (
    MMRLHFRewardBenchReader as MMRLHFRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks.multimodal_rewardbench import (
    MultimodalRewardBenchReader as MultimodalRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks.reader import BenchmarkReader as BenchmarkReader
from ixc_lightning.datamodules.benchmarks.rewardbench import RewardBenchReader as RewardBenchReader
from ixc_lightning.datamodules.benchmarks.rewardbench_2 import RewardBench2Reader as RewardBench2Reader
from ixc_lightning.datamodules.benchmarks.rm_bench import RMBenchReader as RMBenchReader
from ixc_lightning.datamodules.benchmarks.video_rewardbench import (
    VideoRewardBenchReader as VideoRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks.vl_rewardbench import VLRewardBenchReader as VLRewardBenchReader
