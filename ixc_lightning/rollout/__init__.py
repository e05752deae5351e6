# SPDX-License-Identifier: Apache-2.0
"""Policy and prompts to rollouts, and what verifiers say about them."""

from ixc_lightning.functional.rollout import rollout_seed as rollout_seed
from ixc_lightning.rollout.constraints import InstructionFollowing as InstructionFollowing
from ixc_lightning.rollout.engine import Engine as Engine
from ixc_lightning.rollout.engine import Sampling as Sampling
from ixc_lightning.rollout.engine import TransformersEngine as TransformersEngine
from ixc_lightning.rollout.engine import stack_rollout as stack_rollout
from ixc_lightning.rollout.judge import Judge as Judge
from ixc_lightning.rollout.judge import VerifierJudge as VerifierJudge
from ixc_lightning.rollout.judge_client import ChatClient as ChatClient
from ixc_lightning.rollout.judge_limits import Limits as Limits
from ixc_lightning.rollout.math_answers import MathMatch as MathMatch
from ixc_lightning.rollout.pairwise_judge import PairwiseJudge as PairwiseJudge
from ixc_lightning.rollout.text import check_same_tokenizer as check_same_tokenizer
from ixc_lightning.rollout.text import same_tokenizer as same_tokenizer
from ixc_lightning.rollout.text import stop_tokens as stop_tokens
from ixc_lightning.rollout.text import texts as texts
from ixc_lightning.rollout.verifiers import ExactMatch as ExactMatch
from ixc_lightning.rollout.verifiers import Format as Format
from ixc_lightning.rollout.verifiers import LengthPenalty as LengthPenalty
from ixc_lightning.rollout.verifiers import MultipleChoice as MultipleChoice
from ixc_lightning.rollout.verifiers import NumberMatch as NumberMatch
from ixc_lightning.rollout.verifiers import Verifier as Verifier
