# SPDX-License-Identifier: Apache-2.0
"""The packaged recipes: one YAML file each, listed by ``python -m ixc_lightning recipes``."""
