"""`lockstitch doctor`: what can be promised at a path."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator

from lockstitch._journal import current_storage

from ._grounds import (
    Finding,
    judge_file,
    judge_folder,
    judge_mount,
    judge_own_mount,
    judge_space,
    mount_of,
)
from ._printing import count, say
from ._probes import tried

_MOUNTS = "/proc/self/mountinfo"


def doctor(args: argparse.Namespace) -> int:
    """Say what this path can promise; 0 when all of it, 1 when there are limits."""
    path = os.path.realpath(args.checkpoint)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(None, "there is no such folder", folder)
    say(path)
    limits = 0
    for finding in _findings(args.checkpoint, path, folder):
        limits += finding.grade == "limit"
        say(f"  {finding.grade:5} {finding.found}")
        if finding.means:
            say(f"        this means: {finding.means}")
        if finding.do:
            say(f"        what to do: {finding.do}")
    say(
        f"{count(limits, 'limit')} to what lockstitch promises"
        if limits
        else "all that lockstitch promises holds here"
    )

    return 1 if limits else 0


def _findings(given: str, path: str, folder: str) -> Iterator[Finding]:
    if path != os.path.abspath(given):
        yield Finding(
            "note",
            f"the path leads through a symbolic link to {path}",
            "the checkpoint, its lock and whatever is put aside are there",
        )
    mounted = mount_of(path, _mountinfo())
    yield from judge_mount(mounted)
    if os.name != "nt":  # where the mode of a file says nothing about others
        yield judge_folder(folder, os.stat(folder).st_mode)
    size = 0
    if path != folder and os.path.lexists(path):
        status = os.stat(path, follow_symlinks=False)
        size = status.st_size
        yield from judge_own_mount(path, mounted)
        if os.name != "nt":
            yield from judge_file(path, status.st_mode, status.st_nlink)
    yield judge_space(shutil.disk_usage(folder).free, size)
    try:
        yield from tried(folder, current_storage())
    except OSError as error:
        yield Finding(
            "limit",
            f"no file can be made here: {error.strerror}",
            "neither a checkpoint nor its lock can be",
            "give a folder that you may write to",
        )


def _mountinfo() -> str:
    """Return what the system tells about its mounts; empty where it does not (not Linux)."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
