"""The `lockstitch` command, and its arguments for scripts of your own.

`main` is the command. `add_arguments` gives an `argparse` parser the options that every resumable
script wants, and `from_arguments` makes of the parsed ones what `Checkpoint` and
`ResumableBatch` take.
"""

from ._arguments import Arguments, add_arguments, from_arguments
from ._main import main
from ._run import CommandFailed

__all__ = ["Arguments", "CommandFailed", "add_arguments", "from_arguments", "main"]
