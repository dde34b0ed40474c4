"""Every Python block of README.md and of the pages in docs/ runs as a test."""

import logging
import os
import tempfile
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def _enter_scratch_folder(namespace: dict[str, Any]) -> None:
    """Give each document its own working directory, so that it may write where its reader would."""
    namespace["__scratch__"] = tempfile.TemporaryDirectory()
    namespace["__home__"] = os.getcwd()
    namespace["__handlers__"] = logging.root.handlers[:]
    os.chdir(namespace["__scratch__"].name)


def _leave_scratch_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["__home__"])
    logging.root.handlers[:] = namespace["__handlers__"]
    scratch = namespace["__scratch__"]
    namespace.clear()  # what a block left open is closed before its folder goes
    scratch.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_enter_scratch_folder,
    teardown=_leave_scratch_folder,
).pytest()
