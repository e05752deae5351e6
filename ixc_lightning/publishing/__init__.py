# SPDX-License-Identifier: Apache-2.0
"""What goes with a model when it leaves this machine: its card, and the way to the hub."""
