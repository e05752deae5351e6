# SPDX-License-Identifier: Apache-2.0
"""torchmetrics classes over the pure functions of ``ixc_lightning.functional``."""

from ixc_lightning.metrics.preference import PreferenceStatistics as PreferenceStatistics
