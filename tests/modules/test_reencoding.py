# SPDX-License-Identifier: Apache-2.0
"""A reward model of another family scores the answers as texts: as it would score them from Python."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models import RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.modules import DomainScale, PPOModule, RLOOModule
from ixc_lightning.rollout import stack_rollout, texts
from ixc_lightning.scoring import Scorer
from ixc_lightning.types import MODALITIES, InputError, Responses
from tests.digits import FRAMES, trainer
from tests.modules.policies import on_policy, prompt_data, same_judge

SAME = 1e-5  # float32, sums in another order
OTHER = "qwen2_5_vl"
ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds; the two processes give up on each other well before


class Saying:
    """An engine that says what it is told, ended or cut, as the tokens of the policy."""

    def __init__(self, *said, is_cut=False):
        self.said, self.is_cut = said, is_cut

    def generate(self, policy, batch, visuals, sampling, *, seed):
        rows = [self.said[row % len(self.said)] for row in range(sampling.n * len(batch.keys))]
        stop = sampling.stop_tokens[0]
        ids = [[*self.encode(text), *([] if self.is_cut else [stop])] for text in rows]
        width = max(map(len, ids))
        mask = torch.tensor([[place < len(row) for place in range(width)] for row in ids])
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        ended = torch.full((len(rows),), not self.is_cut)
        return stack_rollout(batch, Responses(tokens, mask), ended)

    def encode(self, text):
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def saying(tiny_folder, *said, **options):
    engine = Saying(*said, **options)
    engine.processor = ChatEncoder(str(tiny_folder)).processor
    return engine


def module_of(kind, tiny_folder, judge, **options):
    """A module whose reward model is of another family, and that alone earns reward."""
    settings = {"reward_model": partial(same_judge, judge), "reencode": True, "verifiers": None}
    return on_policy(kind, tiny_folder, **{**settings, **options})


def fit(module, digits, tiny_folder, folder, *, checkpoint=None, data=None, **options):
    run = trainer(folder, **{"max_steps": 1, "max_epochs": 4, "limit_val_batches": 0, **options})
    run.fit(module, data or prompt_data(digits, tiny_folder), ckpt_path=checkpoint, weights_only=True)
    return run


def watched(module):
    """Keeps the rollouts that are scored, and their scores."""
    seen, own = [], module.opinion

    def opinion(rollout, pictures):
        seen.append((rollout, own(rollout, pictures)))
        return seen[-1][1]

    module.opinion = opinion
    return seen


def from_python(judge, module, rollout, *, suffix=""):
    """The scores of the same texts and media, from Python."""
    encoder = ChatEncoder(judge, video_frames=FRAMES, response_suffix=suffix)
    scorer = Scorer(same_judge(judge), encoder)
    data = module.trainer.datamodule
    records = [data.dataset("train").named(key) for key in rollout.keys]
    conversations = [
        [*_with_media(record), {"role": "assistant", "content": text}]
        for record, text in zip(records, texts(rollout, module.processor), strict=True)
    ]
    return scorer.score(conversations)


def _with_media(record):
    return [
        {
            "role": turn["role"],
            "content": [
                part
                if part["type"] == "text"
                else {"type": part["type"], part["type"]: record.media[part["file"]]}
                for part in turn["content"]
            ],
        }
        for turn in record.messages
    ]


@pytest.fixture(scope="module")
def judge(tiny):
    return tiny(OTHER).folder


@pytest.mark.parametrize(
    ("engine", "suffix"),
    [
        (None, ""),
        (("It is 4.", "the left one", "no"), ""),
        (("It is 4.", "the left one", "no"), "<row_1_col_1>"),
    ],
)
def test_scores_are_those_of_the_texts_from_python_for_every_modality(
    engine, suffix, digits, tiny_folder, judge, tmp_path
):
    options = {"reward_suffix": suffix} | ({"engine": saying(tiny_folder, *engine)} if engine else {})
    module = module_of(RLOOModule, tiny_folder, judge, rows_at_once=3, **options)
    seen = watched(module)
    fit(module, digits, tiny_folder, tmp_path)
    ((rollout, scores),) = seen
    assert set(rollout.modality.tolist()) == set(range(len(MODALITIES)))
    assert scores.std() > 100 * SAME
    assert scores.tolist() == pytest.approx(from_python(judge, module, rollout, suffix=suffix), abs=SAME)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "internlm_xcomposer2"])
def test_every_family_scores_the_texts_as_from_python(family, digits, tiny_folder, tiny, tmp_path):
    judge = tiny(family).folder
    module = module_of(RLOOModule, tiny_folder, judge, engine=saying(tiny_folder, "It is 4.", "no", "left"))
    seen = watched(module)
    run = fit(module, digits, tiny_folder, tmp_path)
    ((rollout, scores),) = seen
    assert scores.tolist() == pytest.approx(from_python(judge, module, rollout), abs=SAME)
    assert run.logged_metrics["train/reencoded_unlike"] == 0


def test_an_answer_that_the_limit_cut_short_is_scored_as_its_text(digits, tiny_folder, judge, tmp_path):
    """It ends to the reward model as any text does; the penalty for a missing end is apart."""
    said, scores = ("the left one", "4"), {}
    for is_cut in (False, True):
        engine = saying(tiny_folder, *said, is_cut=is_cut)
        module = module_of(RLOOModule, tiny_folder, judge, engine=engine, missing_end_penalty=1.0)
        seen = watched(module)
        run = fit(module, digits, tiny_folder, tmp_path / str(is_cut))
        scores[is_cut] = seen[0][1], float(run.logged_metrics["train/score"])
    assert torch.equal(scores[True][0], scores[False][0])
    assert scores[True][1] == pytest.approx(scores[False][1] - 1.0, abs=SAME)


@pytest.mark.parametrize(
    ("said", "unlike", "bad"),
    [
        (("It is 4.", " two\n words "), 0.0, 0.0),
        (("half of \ufffd", "It is 4."), 0.5, 0.0),
        (("<|image_pad|>", "It is 4."), 0.0, 0.5),
    ],
)
def test_what_becomes_of_the_texts_is_counted(said, unlike, bad, digits, tiny_folder, judge, tmp_path):
    module = module_of(RLOOModule, tiny_folder, judge, engine=saying(tiny_folder, *said))
    run = fit(module, digits, tiny_folder, tmp_path)
    logged = {name: float(value) for name, value in run.logged_metrics.items()}
    assert logged["train/reencoded_unlike"] == unlike
    assert logged["train/reencoded_bad"] == logged["train/bad_scores"] == bad
    template = ChatEncoder(judge)
    question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    lengths = [len(ids) for ids in template.answers(question, said, where="set:0")]
    assert logged["train/reencoded_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert logged["train/length"] != logged["train/reencoded_length"]


def test_a_template_that_leaves_part_of_an_answer_out_is_counted(digits, tiny_folder, judge, tmp_path):
    module = module_of(RLOOModule, tiny_folder, judge, engine=saying(tiny_folder, "so so#4", "4"))
    data = prompt_data(digits, tiny_folder)

    def without_reasoning(source, *, response_suffix):
        encoder = data.__class__.encode_for(data, source, response_suffix=response_suffix)
        template = encoder.processor.chat_template
        encoder.processor.chat_template = template.replace("part['text']", "part['text'].split('#')[-1]")
        return encoder

    data.encode_for = without_reasoning
    run = fit(module, digits, tiny_folder, tmp_path, data=data)
    assert run.logged_metrics["train/reencoded_unlike"] == 0.5


def test_validation_scores_the_same_way_and_counts(digits, tiny_folder, judge, tmp_path):
    module = module_of(RLOOModule, tiny_folder, judge, engine=saying(tiny_folder, "It is 4."))
    (results,) = trainer(tmp_path).validate(module, prompt_data(digits, tiny_folder), verbose=False)
    assert results["val/greedy_score"] == pytest.approx(results["val/sampled_score"], abs=SAME)
    assert results["val/reencoded_unlike"] == 0
    assert results["val/reencoded_length"] > results["val/greedy_length"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_critic_learns_beside_it_and_a_killed_run_goes_on_bit_for_bit(digits, tiny_folder, judge, tmp_path):
    def build():
        critic = {"critic": partial(Critic, str(tiny_folder)), "critic_optimizer": partial(AdamW, lr=1e-3)}
        return module_of(PPOModule, tiny_folder, judge, score_scale=DomainScale(), **critic)

    def data():
        return prompt_data(digits, tiny_folder, batch_size=2)

    def saver(name):
        return ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1, filename="{step}")

    options = {"max_steps": 2, "enable_checkpointing": True}
    whole, resumed = build(), build()
    run = fit(whole, digits, tiny_folder, tmp_path, data=data(), callbacks=[saver("saved")], **options)
    torch.manual_seed(99)
    options |= {"callbacks": [saver("saved again")], "checkpoint": str(tmp_path / "saved/step=1.ckpt")}
    again = fit(resumed, digits, tiny_folder, tmp_path / "again", data=data(), **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.score_scale.moments == resumed.score_scale.moments
    for name in ("train/score", "train/reencoded_length", "train/value_loss"):
        assert run.logged_metrics[name] == again.logged_metrics[name]
    fresh = same_judge(judge).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in whole.reward_model.state_dict().items())


@pytest.mark.parametrize("suffix", ["", " zero"])
def test_equal_tokens_encoded_anew_score_as_they_are(suffix, digits, tiny_folder, tmp_path):
    scores = []
    for reencode in (False, True):
        engine = saying(tiny_folder, "It is 4.", "the left one", "no")
        options = {"engine": engine, "reencode": reencode, "reward_suffix": suffix}
        module = module_of(RLOOModule, tiny_folder, str(tiny_folder), **options)
        seen = watched(module)
        fit(module, digits, tiny_folder, tmp_path / str(reencode))
        scores.append(seen[0][1])
    assert scores[1].tolist() == pytest.approx(scores[0].tolist(), abs=SAME)


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_without_the_option_such_a_reward_model_is_refused_and_the_option_is_named(
    verb, digits, tiny_folder, judge, tmp_path
):
    module = module_of(RLOOModule, tiny_folder, judge, reencode=False)
    run = trainer(tmp_path, **({"limit_val_batches": 0} if verb == "fit" else {}))
    with pytest.raises(InputError, match=r"the reward model has another tokenizer .*model\.reencode: true"):
        getattr(run, verb)(module, prompt_data(digits, tiny_folder))


def test_a_critic_made_of_such_a_reward_model_is_refused(digits, tiny_folder, judge, tmp_path):
    module = module_of(PPOModule, tiny_folder, judge, critic=partial(Critic, judge))
    with pytest.raises(InputError, match=r"critic has another tokenizer .*policy's source with head: zero"):
        fit(module, digits, tiny_folder, tmp_path)


def test_a_reward_token_of_the_reward_models_own_tokenizer_must_stand_behind_answers(
    digits, tiny_folder, judge, tmp_path
):
    token = ChatEncoder(judge).tokenizer.convert_tokens_to_ids("<row_1_col_1>")
    reader = partial(RewardModel, judge, pooling="token", reward_token_id=token)
    module = module_of(RLOOModule, tiny_folder, judge, reward_model=reader)
    with pytest.raises(InputError, match=f"token {token}, which no response ends with: give reward_suffix"):
        fit(module, digits, tiny_folder, tmp_path)
    module = module_of(RLOOModule, tiny_folder, judge, reward_model=reader, reward_suffix="<row_1_col_1>")
    assert fit(module, digits, tiny_folder, tmp_path).logged_metrics["train/bad_scores"] == 0


def test_an_answer_for_which_the_reward_model_has_no_room_is_named(digits, tiny_folder, judge, tmp_path):
    module = module_of(RLOOModule, tiny_folder, judge, engine=saying(tiny_folder, "no " * 400))
    with pytest.raises(InputError, match=r"shard-.*tokens and \d{4} of an answer.*its 1024 positions: lower"):
        fit(module, digits, tiny_folder, tmp_path)


def test_a_reward_model_of_text_alone_names_the_first_prompt_with_a_picture(
    digits, tiny_folder, tiny, tmp_path
):
    module = module_of(RLOOModule, tiny_folder, tiny("qwen2").folder)
    with pytest.raises(InputError, match=r"shard-.*prompt, but the model reads text only"):
        fit(module, digits, tiny_folder, tmp_path)


def test_encoding_for_no_reward_model_is_refused(tiny_folder):
    with pytest.raises(InputError, match="reencode is on, but there is no reward model"):
        on_policy(RLOOModule, tiny_folder, reencode=True)


@pytest.mark.slow
def test_two_ranks_with_unlike_prompts_encode_anew_as_one_process(tiny, judge, tmp_path):
    logged = {}
    for world in (2, 1):
        out = tmp_path / str(world)
        out.mkdir()
        options = {"model": tiny("internvl").folder, "judge": judge, "out": str(out)}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
        ended = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.modules.sharded_reencoding", json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=LIMIT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-6000:]
        logged[world] = json.loads((out / "result.json").read_text())
    assert len(logged[2]) == len(logged[1]) == 2
    for shared, single in zip(logged[2], logged[1], strict=True):
        assert single["train/reencoded_length"] > 1
        for name in ("score", "reward", "length", "reencoded_length", "reencoded_unlike", "kl"):
            expected = single[f"train/{name}"]
            assert shared[f"train/{name}"] == pytest.approx(expected, rel=1e-3, abs=SAME), name
