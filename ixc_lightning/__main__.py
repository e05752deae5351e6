# SPDX-License-Identifier: Apache-2.0
"""``python -m ixc_lightning``."""

from ixc_lightning.cli.main import main

if __name__ == "__main__":
    main()
