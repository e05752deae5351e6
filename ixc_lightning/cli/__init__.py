# SPDX-License-Identifier: Apache-2.0
"""The command line. It alone may know every other layer."""
