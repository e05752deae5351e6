# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from ixc_lightning.processors import load_processor
from ixc_lightning.types import InputError


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"no processor can be loaded from '{tmp_path}'.*Give a hub id"):
        load_processor(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        load_processor(str(tmp_path / "nowhere"))


def test_a_released_folder_is_to_be_converted_and_its_code_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    code = {"AutoConfig": "code.Config", "AutoProcessor": "code.Processor"}
    config = {"architectures": ["InternLMXComposer2ForCausalLM"], "model_type": "own", "auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="convert-checkpoint makes a folder of it"):
        load_processor(str(tmp_path))
