# SPDX-License-Identifier: Apache-2.0
"""Pure tensor mathematics: no state, no logging, no device moves; imports torch alone."""
