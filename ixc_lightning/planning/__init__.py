# SPDX-License-Identifier: Apache-2.0
"""What a recipe will take of a GPU's memory and time, from configurations alone: no weight is read."""

from ixc_lightning.planning.forecast import (
    Forecast,
    Hardware,
    OneNetwork,
    Phase,
    forecast_rl,
    forecast_training,
)
from ixc_lightning.planning.rehearsal import Cost, Work, cost_of
from ixc_lightning.planning.states import cache_bytes, optimiser_bytes, weight_bytes

__all__ = [
    "Cost",
    "Forecast",
    "Hardware",
    "OneNetwork",
    "Phase",
    "Work",
    "cache_bytes",
    "cost_of",
    "forecast_rl",
    "forecast_training",
    "optimiser_bytes",
    "weight_bytes",
]
