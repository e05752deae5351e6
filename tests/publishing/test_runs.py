# SPDX-License-Identifier: Apache-2.0
"""Where the data of a run come from, and what of its settings is told."""

import hashlib
import json

import torch

from ixc_lightning.publishing.runs import (
    KEY,
    Run,
    describe_shards,
    finite,
    hub_datasets,
    installed_versions,
    public_recipe,
)


def test_a_folder_s_entry_holds_its_counts_and_the_checksum_of_its_manifest(digits):
    folder = digits / "preference/train"
    shards = sorted(folder.glob("*.tar"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = describe_shards("train", {shards[0]: manifest["samples"]})
    assert entry["folder"] == "preference/train"
    assert (entry["split"], entry["shards"], entry["samples"]) == ("train", 1, manifest["samples"])
    assert entry["domains"] == manifest["domains"]
    assert entry["sha256"] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def test_the_report_of_a_converter_above_the_folder_names_data_set_and_licence(tmp_path):
    folder = tmp_path / "out/train"
    folder.mkdir(parents=True)
    report = {"name": "hh_rlhf", "home": "Anthropic/hh-rlhf", "licence": "MIT", "source": "/home/me/x"}
    (tmp_path / "out/conversion.json").write_text(json.dumps(report))
    (entry,) = describe_shards("val", {folder / "a.tar": 3})
    assert (entry["name"], entry["home"], entry["licence"]) == ("hh_rlhf", "Anthropic/hh-rlhf", "MIT")
    assert "sha256" not in entry
    assert hub_datasets([entry, entry, {"home": "any instruction data"}, {}]) == ["Anthropic/hh-rlhf"]


def test_shards_of_several_places_are_told_apart_and_addresses_lose_their_logins(tmp_path):
    counts = {
        tmp_path / "a/0.tar": 1,
        tmp_path / "b/0.tar": 2,
        tmp_path / "a/1.tar": 3,
        "s3://key:secret@bucket/train/0.tar": 4,
    }
    found = {
        entry["folder"]: (entry["shards"], entry["samples"]) for entry in describe_shards("train", counts)
    }
    name = tmp_path.name
    assert found == {f"{name}/a": (2, 4), f"{name}/b": (1, 2), "s3://bucket/train": (1, 4)}


def test_files_that_are_broken_leave_the_entry_without_what_they_say(tmp_path):
    (tmp_path / "manifest.json").write_text("[")
    (tmp_path / "conversion.json").write_text("[]")
    (entry,) = describe_shards("train", {tmp_path / "0.tar": 1})
    assert "domains" not in entry
    assert entry["home"] == ""


def test_the_recipe_is_without_what_belongs_to_the_machine():
    settings = {
        "seed_everything": 0,
        "needs": [{"path": "~/x"}],
        "export": {"folder": "/home/me/out"},
        "ckpt_path": "/home/me/last.ckpt",
        "model": {"init_args": {"source": "~/.cache/sft", "api_key": "s3cr3t"}},
        "trainer": {
            "max_steps": 2,
            "logger": {"init_args": {"save_dir": "x"}},
            "default_root_dir": "y",
            "callbacks": [{"class_path": "a.RichProgressBar"}, {"class_path": "a.EarlyStopping"}],
        },
    }
    assert public_recipe(settings) == {
        "seed_everything": 0,
        "model": {"init_args": {"source": "…/sft", "api_key": "(left out)"}},
        "trainer": {"max_steps": 2, "callbacks": [{"class_path": "a.EarlyStopping"}]},
    }
    assert public_recipe({"trainer": {"max_steps": 2, "callbacks": None}}) == {"trainer": {"max_steps": 2}}


def test_metrics_that_are_no_numbers_are_left_out():
    metrics = {"b": torch.tensor(0.5), "a": 1.0, "c": float("nan"), "d": float("inf")}
    assert list(finite(metrics).items()) == [("a", 1.0), ("b", 0.5)]


def test_a_run_goes_through_a_checkpoint_that_needs_no_unpickling(tmp_path):
    run = Run(
        {"a": 1}, [{"split": "train"}], {"F": 2}, {"video_frames": 4}, {"m": 0.5}, 3, installed_versions()
    )
    torch.save({KEY: run.to_checkpoint()}, tmp_path / "a.ckpt")
    assert Run.of_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True)) == run
    assert Run.of_checkpoint({}) is None


def test_the_versions_are_those_that_compute(monkeypatch):
    found = installed_versions()
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "ixc_lightning", "transformers", "lightning"} <= found.keys()
