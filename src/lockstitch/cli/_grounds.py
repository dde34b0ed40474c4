"""What a file system and a folder mean for a checkpoint. Pure: facts in, findings out."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import Literal

import attrs

#: "limit": something that is promised elsewhere is not promised here. "note": worth knowing.
Grade = Literal["ok", "note", "limit"]


@attrs.frozen
class Finding:
    """One thing that was looked at."""

    grade: Grade
    found: str
    means: str = ""
    do: str = ""


@attrs.frozen
class Mount:
    """A line of /proc/self/mountinfo; see proc(5)."""

    point: str
    type: str
    read_only: bool


_OCTAL = re.compile(r"\\([0-7]{3})")


def mounts(text: str) -> Iterator[Mount]:
    """Yield what /proc/self/mountinfo says, in its order."""
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6:
            point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
            yield Mount(point, kind[0], "ro" in fields[5].split(","))


def mount_of(path: str, text: str) -> Mount | None:
    """Return the mount that a real path is on: the innermost one, and of several the last."""
    found = None
    for mount in mounts(text):
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount

    return found


_LOCAL = frozenset({
    "apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "nilfs2", "ntfs",
    "ntfs3", "reiserfs", "ufs", "xfs", "zfs",
})  # fmt: skip
_NETWORK = frozenset({
    "9p", "afs", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.davfs2", "fuse.gcsfuse",
    "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs",
})  # fmt: skip
_VOLATILE = frozenset({"ramfs", "tmpfs"})
_FAT = frozenset({"exfat", "msdos", "vfat"})


def judge_mount(mount: Mount | None) -> Iterator[Finding]:
    """Judge a file system by its type."""
    if mount is None:
        yield Finding("note", "file system: this system does not tell", "the checks below do")
        return
    what = f"file system: {mount.type} at {mount.point}{', read-only' * mount.read_only}"
    if mount.type in _NETWORK:
        yield Finding(
            "limit",
            what,
            "network file systems are not supported: locks may keep no other machine out, appends "
            "of two may overlap, and a failed write may be told late or never",
            "put the checkpoint on a local disk, one per machine",
        )
    elif mount.type in _VOLATILE:
        yield Finding(
            "limit",
            what,
            "it is in memory: records survive the death of the process, and are gone after a "
            "restart of the machine",
            "put the checkpoint on a disk",
        )
    elif mount.type == "overlay":
        yield Finding(
            "limit",
            what,
            "it is the layer of a container, and gone when the container is removed",
            "put the checkpoint on a volume",
        )
    elif mount.type.startswith("fuse"):
        yield Finding(
            "limit",
            what,
            "what is promised here is what the program behind it promises, which cannot be seen",
            "put the checkpoint on a local disk",
        )
    elif mount.type in _FAT:
        yield Finding(
            "limit",
            what,
            "it has no owners and no journal: everybody can read the file, and a power cut may "
            "damage the folder",
            "put the checkpoint on another file system",
        )
    elif mount.type in _LOCAL:
        yield Finding("ok", what)
    else:
        yield Finding("note", what, "not known to lockstitch; the checks below tell what it does")


def judge_own_mount(path: str, mount: Mount | None) -> Iterator[Finding]:
    """Judge whether a file can be replaced, which one that is mounted by itself cannot."""
    if mount is not None and mount.point == path:
        yield Finding(
            "limit",
            "the file itself is a mount point (a file that is mounted into a container)",
            "it cannot be replaced: saving works, while compacting, forgetting and repairing fail",
            "mount its folder instead",
        )


def judge_folder(folder: str, status_mode: int) -> Finding:
    """Judge who may put files beside the checkpoint."""
    mode = f"folder: {folder}, mode {stat.S_IMODE(status_mode):04o}"
    if not status_mode & stat.S_IWOTH:
        return Finding("ok", mode)
    if status_mode & stat.S_ISVTX:
        return Finding(
            "note",
            f"{mode}: everybody may put files here, and take only their own away",
            "somebody who makes the lock file first keeps you out; and such folders are often "
            "emptied by the system",
            "use a folder of your own",
        )

    return Finding(
        "limit",
        f"{mode}: everybody may exchange any file here",
        "somebody else can put another checkpoint in the place of yours, or another lock",
        f"use a folder of your own, or: chmod o-w {folder}",
    )


def judge_file(path: str, mode: int, links: int) -> Iterator[Finding]:
    """Judge the checkpoint that is there already."""
    shown = f"file: mode {stat.S_IMODE(mode):04o}"
    if not stat.S_ISREG(mode):
        yield Finding(
            "limit",
            "there is something else than a regular file",
            "opening it is refused",
            "give another path",
        )
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "limit",
            f"{shown}: others may write to it",
            "a checksum is no signature: they can forge results, and with a serializer such as "
            "pickle they can run code as you",
            f"chmod go-w {path}",
        )
    elif mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding("note", f"{shown}: others may read your results", do=f"chmod go-r {path}")
    else:
        yield Finding("ok", shown)
    if links > 1:
        yield Finding(
            "limit",
            f"the file has {links} names (hard links)",
            "when it is rewritten, the other names keep the old content",
            "copy it, and keep one name",
        )


def judge_space(free: int, size: int) -> Finding:
    """Judge the free space, in bytes, beside a checkpoint of `size` bytes."""
    found = f"free space: {free / 2**20:,.0f} MiB"
    if free < max(size, 64 * 2**20):
        return Finding(
            "limit",
            found,
            "a rewrite needs room for a whole copy; a save that finds no room raises OSError, and "
            "nothing that was stored is lost",
            "make room",
        )

    return Finding("ok", found)
