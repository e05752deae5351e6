# SPDX-License-Identifier: Apache-2.0
"""What a card shows of settings gives away no secret and no place on the machine."""

import pytest

from ixc_lightning.publishing.redaction import LEFT_OUT, public

SECRETS = """
token hf_token HF-Token api_key apikey secret aws_secret_access_key password passwd wandb_api_key credentials
authorization secret_token auth_token
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_setting_named_like_a_secret_is_left_out(name):
    assert public({"logger": {name: "s3cr3t"}}) == {"logger": {name: LEFT_OUT}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 64),
        ("reward_token_id", 3),
        ("reward_token", "<|end|>"),
        ("tokenizer", "a"),
        ("monkey", "b"),
    ],
)
def test_a_setting_that_only_sounds_like_one_stays(name, value):
    assert public({name: value}) == {name: value}


def test_a_secret_s_setting_that_is_null_stays_null():
    assert public({"token": None}) == {"token": None}


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuv",
        "sk-proj-abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuvwxyz",
        "AKIAABCDEFGHIJKLMNOP",
        "Bearer abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_a_text_that_looks_like_a_token_is_left_out_wherever_it_stands(secret):
    shown = public({"note": [f"use {secret} here"]})["note"][0]
    assert secret not in shown
    assert shown.startswith("use ")
    assert LEFT_OUT in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/someone/data/train", "…/train"),
        ("~/.cache/ixc_lightning/sft", "…/sft"),
        ("~someone/model", "…/model"),
        ("./outputs/reward", "…/reward"),
        ("../shard-{000000..000009}.tar", "…/shard-{000000..000009}.tar"),
        ("file:///home/someone/model", "…/model"),
        (r"C:\Users\someone\model", "…/model"),
        ("--data=/home/someone/train", "--data=…/train"),
        ("from '/home/someone/a b'", "from '…/a b'"),
    ],
)
def test_of_a_local_path_the_last_part_stays(text, shown):
    assert public(text) == shown


def test_a_name_that_leads_to_a_folder_here_is_a_local_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public("someone/model") == "someone/model"
    (tmp_path / "someone/model").mkdir(parents=True)
    assert public("someone/model") == "…/model"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/train", "s3://bucket/train"),
        ("https://host/a.tar?X-Amz-Signature=abc", "https://host/a.tar?…"),
        ("https://me:pass@host/a", "https://host/a"),
        ("https://huggingface.co/Qwen/Qwen2.5", "https://huggingface.co/Qwen/Qwen2.5"),
    ],
)
def test_an_address_loses_login_and_query(text, shown):
    assert public(text) == shown


@pytest.mark.parametrize(
    "plain",
    [
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "torch.optim.AdamW",
        r"^(?:.*\b(?:is|are) )?(?:the )?(.+?)(?: one| digits)?\.?$",
        "1/2 of the data",
        0.5,
        True,
        None,
        [1, "a"],
    ],
)
def test_everything_else_stays_as_it_is(plain):
    assert public({"a": plain}) == {"a": plain}
