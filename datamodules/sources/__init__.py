# SPDX-License-Identifier: Apache-2.0
"""Converters from public data sets to shards, one file a source."""
