# SPDX-License-Identifier: Apache-2.0
"""Recipes that evaluate a trained reward model on a benchmark."""
