# SPDX-License-Identifier: Apache-2.0
import pytest

from ixc_lightning.processors import load_processor
from ixc_lightning.types import InputError


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"no processor can be loaded from '{tmp_path}'.*Give a hub id"):
        load_processor(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        load_processor(str(tmp_path / "nowhere"))
