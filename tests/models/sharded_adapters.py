# SPDX-License-Identifier: Apache-2.0
"""One process of ``sharded_fit`` whose reward model has adapters."""

import json
import sys
from functools import partial

from ixc_lightning.models import LoRA, RewardModel
from tests.models import sharded_fit

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    settings = {"adapter": LoRA(rank=4, alpha=8.0), "quantisation": options.pop("quantisation")}
    sharded_fit.RewardModel = partial(RewardModel, **settings)
    sharded_fit.main(options)
