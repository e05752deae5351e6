# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks: what a run shows and leaves behind. They never import modules."""

from ixc_lightning.callbacks.best_of_n import BestOfNWriter as BestOfNWriter
from ixc_lightning.callbacks.cleaning import CleanedDataWriter as CleanedDataWriter
from ixc_lightning.callbacks.examples import PreferenceExamples as PreferenceExamples
from ixc_lightning.callbacks.export import HuggingFaceExport as HuggingFaceExport
from ixc_lightning.callbacks.pairs import PairWriter as PairWriter
from ixc_lightning.callbacks.preemption import Preemption as Preemption
from ixc_lightning.callbacks.rollouts import RolloutExamples as RolloutExamples
from ixc_lightning.callbacks.scores import ScoreWriter as ScoreWriter
from ixc_lightning.callbacks.throughput import Throughput as Throughput
