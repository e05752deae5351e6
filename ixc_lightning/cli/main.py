# SPDX-License-Identifier: Apache-2.0
"""The command line: the Trainer's verbs through LightningCLI, and the few commands that are none of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ixc_lightning.cli.commands import COMMANDS
from ixc_lightning.types import InputError

TRAINER_VERBS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; a mistake of the user's ends in one message and status 2.

    Args:
        args: what follows the program's name; null takes it from the process.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        run(words)
    except InputError as error:
        print(f"error: {one_message(error)}", file=sys.stderr)
        sys.exit(2)


def run(words: list[str]) -> None:
    """Run one command and let its errors through, for use from Python."""
    name = words[0] if words else "--help"
    if name in COMMANDS:
        COMMANDS[name].run(words[1:])
    elif name in TRAINER_VERBS:
        # Loads Lightning, which the other commands do without.
        from ixc_lightning.cli.trainer import run_trainer

        run_trainer(words)
    elif name in ("-h", "--help"):
        print(usage())
    else:
        raise InputError(f"there is no command {name!r}\n\n{usage()}")


def usage() -> str:
    """The help page."""
    lines = [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m ixc_lightning COMMAND ...",
            "",
            "with a Trainer, by a recipe (--config FILE, repeated to overlay; any key as --key value):",
            "  fit         train",
            "  validate    evaluate on the validation data",
            "  test        evaluate on the test data",
            "  predict     score data",
            "",
            "without one:",
            *lines,
            "",
            "python -m ixc_lightning COMMAND --help tells more.",
        ]
    )


def one_message(error: Exception) -> str:
    """The message alone, where a loader's worker wrapped it in its traceback."""
    return str(error).rsplit("InputError: ", maxsplit=1)[-1].strip()
