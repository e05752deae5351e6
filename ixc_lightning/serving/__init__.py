# SPDX-License-Identifier: Apache-2.0
"""Scores over HTTP: requests, the batches made of them, and the limits that keep a service up."""
