# SPDX-License-Identifier: Apache-2.0
"""The settings that the paper reports."""
