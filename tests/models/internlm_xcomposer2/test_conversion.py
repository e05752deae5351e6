# SPDX-License-Identifier: Apache-2.0
"""Released folders to ours and back: every key, every byte, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from ixc_lightning.cli.main import run
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2ForConditionalGeneration
from ixc_lightning.models.internlm_xcomposer2.conversion import convert_folder
from ixc_lightning.models.internlm_xcomposer2.release import (
    ReleasedCheckpoint,
    is_released,
    load_released,
    native_shapes,
)
from ixc_lightning.models.internlm_xcomposer2.released_config import native_config, released_config
from ixc_lightning.models.internlm_xcomposer2.released_keys import ADAPTER_RANKS, entries, join_qkv, split_qkv
from ixc_lightning.models.internlm_xcomposer2.weight_files import WeightFiles
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import InputError
from tests.models.internlm_xcomposer2.reference import (
    FOLDER,
    byte_processor,
    case,
    inputs,
    read_gzip,
    released_weights,
    write_released,
    write_vocabulary,
)

KINDS = ("reward", "causal")


def core(weights):
    """The weights without those of the adapters."""
    return {name: tensor for name, tensor in weights.items() if ".lora_" not in name}


def write_bins(folder, weights, *, files=3, flat=False):
    """The weights as the hub has them: several ``.bin`` files and an index."""
    folder.mkdir()
    (folder / "config.json").write_text((FOLDER / "config.json").read_text())
    if flat:  # the vision tower's names as transformers 5 writes them
        weights = {name.replace("vision_model.", ""): tensor for name, tensor in weights.items()}
    names = list(weights)
    places = {}
    for number in range(files):
        file = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = names[number::files]
        torch.save({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def all_weights(folder):
    files = WeightFiles(folder)
    return {name: files.get(name) for name in files}


def equal(one, other):
    assert one.keys() == other.keys()
    return all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("heads", [(8, 2), (4, 4), (6, 1)])
def test_the_fused_rows_are_split_by_key_value_head(heads):
    config = native_config(json.loads((FOLDER / "config.json").read_text())).text_config
    config.num_attention_heads, config.num_key_value_heads = heads
    config.head_dim = 2
    groups = heads[0] // heads[1]
    # each row says which head it belongs to: query heads count from 0, keys from 100, values from 200
    rows = []
    for key in range(heads[1]):
        rows += [query for query in range(key * groups, (key + 1) * groups) for _ in range(2)]
        rows += [100 + key] * 2 + [200 + key] * 2
    fused = torch.tensor(rows)[:, None].float()
    query, key, value = split_qkv(fused, config)
    assert query.flatten().tolist() == [head for head in range(heads[0]) for _ in range(2)]
    assert key.flatten().tolist() == [100 + head for head in range(heads[1]) for _ in range(2)]
    assert value.flatten().tolist() == [200 + head for head in range(heads[1]) for _ in range(2)]
    assert torch.equal(join_qkv((query, key, value), config), fused)


@pytest.mark.parametrize("kind", KINDS)
def test_the_7b_model_has_exactly_the_released_keys_and_shapes(kind):
    config = native_config(released_config(type(native_config(config_json()))()))
    config.text_config.adapter_ranks = dict(ADAPTER_RANKS)
    shapes = native_shapes(config)
    table = list(entries(config, head={"reward": "score", "causal": "output"}[kind]))
    packed = {
        entry.released: list(entry.pack([shapes[name] for name in entry.native]).shape) for entry in table
    }
    expected = read_gzip(f"real_{kind}_state_dict")
    assert packed == expected["shapes"]
    assert len(packed) == len(table) == expected["n_keys"]
    used = [name for entry in table for name in entry.native]
    left = set(shapes) - set(used)
    assert left == {"reward": {"lm_head.weight"}, "causal": {"score.weight"}}[kind]
    assert len(used) == len(set(used))


def config_json():
    return json.loads((FOLDER / "config.json").read_text())


def test_the_generating_model_has_the_keys_of_the_table():
    config = native_config(config_json())
    with torch.device("meta"):
        names = set(InternLMXComposer2ForConditionalGeneration(config).state_dict())
    table = {name for entry in entries(config, head="output") for name in entry.native}
    assert names == {name if name == "lm_head.weight" else f"model.{name}" for name in table}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_equal_to_the_byte(kind, flat, tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in released_weights(kind).items()}
    source = write_bins(tmp_path / "released", weights, flat=flat)
    convert_folder(source, tmp_path / "native", adapters="keep", shard_bytes=100_000)
    convert_folder(tmp_path / "native", tmp_path / "back", adapters="keep", shard_bytes=150_000)
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 2
    assert equal(all_weights(tmp_path / "back"), weights)
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert native_config(again).to_dict() == native_config(config_json()).to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_adapters_are_left_out_and_plora_is_not(kind, tmp_path):
    weights = released_weights(kind)
    convert_folder(write_released(tmp_path / "released", kind), tmp_path / "native")
    convert_folder(tmp_path / "native", tmp_path / "back")
    back = all_weights(tmp_path / "back")
    assert equal(back, core(weights))
    assert sum("Plora" in name for name in back) == 20
    assert len(back) == 82


def test_a_checkpoint_without_adapters_converts_whether_they_are_to_be_kept_or_not(tmp_path):
    source = write_released(tmp_path / "released", "reward", weights=core(released_weights("reward")))
    for adapters in ("keep", "ignore"):
        convert_folder(source, tmp_path / adapters, adapters=adapters)
    assert equal(all_weights(tmp_path / "keep"), all_weights(tmp_path / "ignore"))


def test_a_converted_reward_model_scores_as_the_release_does(tmp_path):
    convert_folder(write_released(tmp_path / "released", "reward"), tmp_path / "native")
    model = RewardModel.from_pretrained(tmp_path / "native")
    assert model.pooling == "last"
    about = case("reward.multi")
    batch = inputs(about["images"], about["prompt"], byte_processor())
    with torch.no_grad():
        hidden = model.backbone.model(**batch).last_hidden_state
    assert model.score(hidden)[0, -1].item() == pytest.approx(about["score_last_token"], abs=1e-4)
    direct = RewardModel(str(tmp_path / "released"))
    assert torch.equal(direct.score.weight, model.score.weight)
    assert equal(direct.backbone.state_dict(), model.backbone.state_dict())


def test_a_trained_reward_model_goes_back_to_the_released_layout(tmp_path):
    model = RewardModel(str(write_released(tmp_path / "released", "reward")))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(tmp_path / "trained")
    convert_folder(tmp_path / "trained", tmp_path / "back")
    weights = core(released_weights("reward"))
    assert equal(all_weights(tmp_path / "back"), {name: 2 * tensor for name, tensor in weights.items()})


def test_transformers_loads_a_converted_causal_model_completely(tmp_path):
    convert_folder(write_released(tmp_path / "released", "causal"), tmp_path / "native", adapters="keep")
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not any(report.values())
    direct = load_released(
        tmp_path / "released", head=True, dtype=torch.float32, attention="sdpa", adapters="keep"
    )
    assert equal(network.state_dict(), direct.state_dict())
    _, report = AutoModel.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"lm_head.weight"}
    assert not report["missing_keys"]


def test_a_vocabulary_beside_the_weights_becomes_the_processor(tmp_path):
    source = write_vocabulary(write_released(tmp_path / "released", "causal"))
    convert_folder(source, tmp_path / "native")
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    assert processor.image_processor.tile_size == processor.video_processor.tile_size == 56
    assert processor.tokenizer("</s>[UNUSED_TOKEN_130]")["input_ids"] == [1, 2, 92527]
    stops = json.loads((tmp_path / "native" / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [2, 92542]


def test_a_reward_model_on_the_causal_release_starts_with_a_fresh_head(tmp_path):
    model = RewardModel(str(write_released(tmp_path / "released", "causal")))
    assert model.pooling == "mean"
    assert "lm_head.weight" not in model.backbone.model.state_dict()


@pytest.mark.parametrize("head", [False, True])
def test_random_weights_need_the_released_config_alone(head, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    with torch.device("meta"):
        backbone = Backbone(str(tmp_path), weights="random", head=head)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert backbone.is_multimodal
    assert [len(backbone.decoder_layers()), len(backbone.vision_blocks())] == [2, 2]


def test_the_command_converts(tmp_path, capsys):
    source = write_released(tmp_path / "released", "reward")
    run(["convert-checkpoint", str(source), str(tmp_path / "native")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'native'}\n"
    assert not is_released(tmp_path / "native")


def test_a_model_of_another_family_is_not_converted(tiny, tmp_path):
    with pytest.raises(InputError, match=r"only InternLM-XComposer2\.5"):
        convert_folder(tiny("internvl").folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def broken(change):
    weights = released_weights("reward")
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.layers.1.feed_forward.w3.Plora_A.weight"), r"1 missing \(model.*w3\.Plora_A"),
        (lambda w: w.update(stray=torch.zeros(2)), r"1 left over \(stray\)"),
        (
            lambda w: w.update({"model.layers.9.wo.Plora_A.weight": torch.zeros(2)}),
            r"1 left over \(.*Plora_A",
        ),
        (
            lambda w: w.update({"model.layers.0.attention.wqkv.weight": torch.zeros(80, 64)}),
            r"1 of another shape \(model\.layers\.0\.attention\.wqkv\.weight\)",
        ),
        (lambda w: w.update({"plora_sub_GN": torch.zeros(1, 1, 128)}), r"another shape \(plora_sub_GN"),
        (lambda w: w.update({"output.weight": torch.zeros(272, 64)}), r"left over \(output\.weight\)"),
    ],
)
def test_what_is_wrong_with_weights_is_named(change, message, tmp_path):
    source = write_released(tmp_path / "released", "reward", weights=broken(change))
    for attempt in (
        lambda: ReleasedCheckpoint(source),
        lambda: RewardModel(str(source)),
        lambda: convert_folder(source, tmp_path / "native"),
    ):
        with pytest.raises(InputError, match=message):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


def test_an_incomplete_set_of_adapters_is_refused_only_where_they_are_kept(tmp_path):
    lost = "model.layers.{}.attention.{}.lora_web_A.weight"
    for name, message in ((lost.format(1, "wo"), "1 missing"), (lost.format(0, "wqkv"), "19 left over")):
        weights = released_weights("reward")
        del weights[name]
        source = write_released(tmp_path / message, "reward", weights=weights)
        ReleasedCheckpoint(source)
        with pytest.raises(InputError, match=rf"{message} \(model\.layers\.\d\..*lora_web"):
            ReleasedCheckpoint(source, adapters="keep")


def test_old_buffers_are_passed_over(tmp_path):
    extra = {"vit.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    weights = released_weights("reward")
    source = write_released(tmp_path / "released", "reward", weights={**weights, **extra})
    assert "vision_tower.embeddings.position_ids" not in ReleasedCheckpoint(source).state_dict()


def test_a_missing_or_damaged_file_is_named(tmp_path):
    source = write_bins(tmp_path / "released", released_weights("reward"))
    second = source / "pytorch_model-00002-of-00003.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00002-of-00003\.bin cannot be read"):
        ReleasedCheckpoint(source)
    second.unlink()
    with pytest.raises(InputError, match=r"names pytorch_model-00002-of-00003\.bin, which is not there"):
        ReleasedCheckpoint(source)


def test_an_index_that_belongs_to_other_files_is_refused(tmp_path):
    source = write_bins(tmp_path / "released", released_weights("reward"))
    index = source / "pytorch_model.bin.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.layers.9.ffn_norm.weight"] = "pytorch_model-00001-of-00003.bin"
    index.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"lacks model\.layers\.9\.ffn_norm\.weight"):
        ReleasedCheckpoint(source)


class Payload:
    """Something that runs code when it is unpickled without care."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    source = write_bins(tmp_path / "released", released_weights("reward"), files=1)
    torch.save({"model.norm.weight": Payload()}, source / "pytorch_model-00001-of-00001.bin")
    with pytest.raises(InputError, match="cannot be read"):
        ReleasedCheckpoint(source)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("rope_theta"), r"config\.json lacks rope_theta"),
        (lambda config: config.update(bias=True), r"config\.json says bias: true"),
    ],
)
def test_a_config_that_is_not_the_release_s_is_refused(change, message, tmp_path):
    source = write_released(tmp_path / "released", "reward")
    config = config_json()
    change(config)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        RewardModel(str(source))


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    source = write_released(tmp_path / "released", "reward")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(InputError, match="is in use"):
        convert_folder(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_the_reward_model_has_no_language_head(tmp_path):
    source = write_released(tmp_path / "released", "reward")
    with pytest.raises(InputError, match="no language head"):
        load_released(source, head=True, dtype=torch.float32, attention="sdpa")


MEASURE = """
import sys
from pathlib import Path
from ixc_lightning.models.internlm_xcomposer2.conversion import convert_folder

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = kilobytes("VmRSS")
convert_folder(sys.argv[1], sys.argv[2], shard_bytes=16_000_000)
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux")
def test_memory_is_bounded_by_the_written_file_and_not_by_the_model(tmp_path):
    config = config_json() | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24}
    native = native_config(config)
    shapes = native_shapes(native)
    weights = {
        entry.released: torch.zeros(entry.pack([shapes[name] for name in entry.native]).shape)
        for entry in entries(native, head="score")
    }
    total = sum(tensor.numel() * 4 for tensor in weights.values())
    assert total > 350_000_000
    source = write_bins(tmp_path / "released", weights, files=1)
    (source / "config.json").write_text(json.dumps(config))
    del weights
    words = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "native")]
    kilobytes = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert kilobytes * 1024 < 150_000_000


def test_safetensors_of_several_files_are_read(tmp_path):
    weights = released_weights("reward")
    source = tmp_path / "released"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config_json()))
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, source / file)
    places = {name: file for file, part in parts.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    one = write_released(tmp_path / "one", "reward")
    assert equal(ReleasedCheckpoint(source).state_dict(), ReleasedCheckpoint(one).state_dict())
