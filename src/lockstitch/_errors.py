"""Everything lockstitch raises on purpose.

LockstitchError
  + UsageError  (also a ValueError)   your call is wrong; nothing was written
  + CheckpointLocked                  another run holds the checkpoint
  + CheckpointDamaged                 bytes that had been stored are wrong or missing
  + ConfigMismatch                    the configuration that changes results has changed
  + DurabilityUnknown                 the disk did not confirm; some records may not survive
  + SerializationFailed               a result cannot be stored and read back unchanged
  + ItemFailed                        this item is already booked as failed
  + RateLimited                       raised by *your* code to say "not now"
  + BatchStopped                      the batch stopped early, for `.reason`

None of them is an `OSError`: a policy that retries `OSError` never retries a lock
conflict. Errors of the disk itself (full, read-only) pass through as the `OSError` they are.

Every class hands *all* its arguments to `Exception.__init__` and builds its text in
`__str__`: an exception that formats in `__init__` cannot be unpickled, and errors of a
batch cross process boundaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ._model import Limit, Record, Summary


class LockstitchError(Exception):
    """Base of every error that lockstitch raises on purpose; anything else is a bug."""


class UsageError(LockstitchError, ValueError):
    """The call is wrong. Nothing was written; correct the call and start again."""


class CheckpointLocked(LockstitchError):
    """Another run has the checkpoint open for writing. Nothing was read or written.

    The holder's `pid`, `host` and `since` are None where the lock file does not tell.
    """

    def __init__(
        self,
        path: str,
        pid: int | None = None,
        host: str | None = None,
        since: datetime | None = None,
        own: bool = False,
    ) -> None:
        super().__init__(path, pid, host, since, own)
        self.path = path
        self.pid = pid
        self.host = host
        self.since = since
        #: True when the holder is this very process.
        self.own = own

    def __str__(self) -> str:
        if self.own:
            return (
                f"{self.path} is already open in this very process (pid {self.pid}); "
                "use that one, or close it first (in a notebook: the cell that opened it ran twice)"
            )
        who = f"pid {self.pid} on {self.host}" if self.pid is not None else "another process"
        when = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since is not None else ""

        return (
            f"{self.path} is in use by {who}{when}; wait for it to end, "
            "or read with Checkpoint(path, read_only=True)"
        )


class CheckpointDamaged(LockstitchError):
    """The bytes of a checkpoint are not what was written. The file was not changed.

    `line` counts from 1 and is 0 where it is not known; `offset` is in bytes from the start of the
    file.
    """

    def __init__(self, path: str, line: int, offset: int, reason: str, hint: str) -> None:
        super().__init__(path, line, offset, reason, hint)
        self.path = path
        self.line = line
        self.offset = offset
        self.reason = reason
        #: What to do next, in words.
        self.hint = hint

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""

        return (
            f"{self.path}{line} (byte {self.offset}): {self.reason}. "
            f"Nothing was changed. {self.hint}"
        )


class ConfigMismatch(LockstitchError):
    """The checkpoint was made with another `config`. Nothing was written.

    `changes` maps the path of each changed value to (stored, given); a missing side is None.
    """

    def __init__(self, path: str, changes: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(path, dict(changes))
        self.path = path
        self.changes: dict[str, tuple[object, object]] = dict(changes)

    def __str__(self) -> str:
        lines = "".join(f"\n  {key}: {old} -> {new}" for key, (old, new) in self.changes.items())

        return (
            f"{self.path} was made with another config:{lines}\n"
            "Go on with the old config, start over with fresh=True (the old file is set aside), "
            'or keep its records with on_config_change="keep".'
        )


class DurabilityUnknown(LockstitchError):
    """The disk failed to confirm a write, and a copy could not be made either.

    The records of `ids` may or may not survive; this handle takes no more saves. Open the
    checkpoint again once the disk is well: it then shows what the disk really holds, and items
    that are not there run again.
    """

    def __init__(self, path: str, ids: tuple[str, ...], reason: str) -> None:
        super().__init__(path, ids, reason)
        self.path = path
        self.ids = ids
        self.reason = reason

    def __str__(self) -> str:
        some = ", ".join(repr(id) for id in self.ids[:5]) + (", …" if len(self.ids) > 5 else "")
        whose = f" of {some}" if self.ids else ""

        return (
            f"{self.path}: {self.reason}; it is unknown whether the last records{whose} are "
            "on the disk. Check the disk, then open the checkpoint again: what it shows then "
            "is stored."
        )


class SerializationFailed(LockstitchError):
    """A value cannot be stored, or would not come back equal. Nothing was written.

    `where` is the path into the value, `$` being the value itself: `$.scores[2]`.
    """

    def __init__(self, id: str, where: str, reason: str) -> None:
        super().__init__(id, where, reason)
        #: The item's id; empty when no item is concerned.
        self.id = id
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        whose = f"the value of {self.id!r}" if self.id else "the value"

        return f"{whose} cannot be stored: at {self.where}: {self.reason}"


class ItemFailed(LockstitchError):
    """The item is booked as failed already, so it was not run; `record` says how it failed."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.record = record

    def __str__(self) -> str:
        what = self.record.error.summary if self.record.error else f"status {self.record.status!r}"

        return (
            f"{self.record.id!r} was booked as {self.record.status!r} in run {self.record.run}: "
            f"{what}; redo={self.record.status!r} runs it again"
        )


class RateLimited(LockstitchError):
    """Raise it inside an item to say that it cannot run before `limit.resume_at`."""

    def __init__(self, limit: Limit) -> None:
        if not hasattr(limit, "resume_at"):  # `Limit` itself lives above this module
            raise UsageError(
                f"RateLimited takes a Limit, such as Limit.after(seconds), not {limit!r}"
            )
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return str(self.limit)


class BatchStopped(LockstitchError):
    """The batch stopped before its end; every finished item is stored, the rest is pending.

    `reason` is "limit", "errors", "time" or "signal".
    """

    def __init__(self, reason: str, summary: Summary) -> None:
        super().__init__(reason, summary)
        self.reason = reason
        self.summary = summary

    @property
    def exit_code(self) -> int:
        """The exit code that tells the caller of this process what happened (0, 1 or 2)."""
        return self.summary.exit_code

    def __str__(self) -> str:
        return f"stopped by {self.reason}: {self.summary}"
