"""`python -m lockstitch`: the `lockstitch` command."""

import sys

from .cli import main

sys.exit(main())
