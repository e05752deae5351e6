# SPDX-License-Identifier: Apache-2.0
"""Settings for one GPU."""
