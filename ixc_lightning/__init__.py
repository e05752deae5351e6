# SPDX-License-Identifier: Apache-2.0
"""Multi-modal reward models, and the reinforcement learning they feed, in PyTorch Lightning."""

__version__ = "0.1.0"
