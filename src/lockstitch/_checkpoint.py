"""The public store: one file of records, the only source of truth for "what is done"."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ._clock import CLOCK
from ._config import as_config, changes
from ._errors import ConfigMismatch, UsageError
from ._ids import Key, as_id, key_function
from ._journal import Journal, current_storage
from ._ledger import Ledger
from ._model import Record, Stats, to_seconds
from ._publish import new_salt
from ._records import Header, iso
from ._redaction import checked, redacted_config
from ._serializers import Codec, Serializer
from ._snapshot import Snapshot
from ._store import Source, Store, check_text, get, records, stats

if TYPE_CHECKING:
    from ._repair import Verification


class Checkpoint:
    """One file of records.

    Nothing happens until it is entered or first used; then it is locked, read and open until
    `close` (or the end of its `with`). Once closed, it can still be read, without a lock: the
    first access looks at the file as it then is, and `refresh()` looks again.

    Args:
        path: where the file is, or will be; its folder must exist.
        config: what changes results, as plain JSON. A later start with another one is refused.
        on_config_change: `"refuse"`, or `"keep"` to take the new config and keep the records.
        serializer: how results are written: a `Serializer`, or a module such as orjson or pickle.
        result_type: what results are structured to when read, with cattrs.
        fsync: True survives power loss. False survives the death of the process. A number of
            seconds (or a timedelta) survives the death of the process, and a power cut loses at
            most the records of the last so many seconds.
        fresh: set an old file aside as `<path>.old-1` and begin anew. Does nothing in a process
            that `lockstitch supervise` has launched again (`LOCKSTITCH_RELAUNCH=1`).
        read_only: a snapshot: no lock, nothing written, works beside a live writer; `refresh()`
            looks again.
        redact: keeps secrets out of the file: a function from text to what may be kept of it. It
            is given messages and tracebacks of errors, reasons of limits, and the texts in
            `config`, and must answer the same each time: a config is compared as it is kept.
            Ids and results are stored as they are. What it raises stops the batch.

    Raises:
        UsageError: an argument is of the wrong type. Nothing was written.

    Opening (the first use) raises `CheckpointLocked`, `CheckpointDamaged`, `ConfigMismatch`,
    `UsageError` or `OSError`; the file is then as it was. Thread-safe. After a fork, the child's
    object refuses to work; make a new one there, with `read_only=True`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        on_config_change: Literal["refuse", "keep"] = "refuse",
        serializer: Serializer | Any = None,
        result_type: Any = None,
        fsync: bool | float | timedelta = True,
        fresh: bool = False,
        read_only: bool = False,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UsageError(f"Checkpoint takes the path of a file, not {path!r}")
        if on_config_change not in ("refuse", "keep"):
            raise UsageError(f'on_config_change takes "refuse" or "keep", not {on_config_change!r}')
        if fresh and read_only:
            raise UsageError("fresh=True begins a new file, which read_only=True cannot")
        self._path = os.path.realpath(os.fspath(path))
        self._redact = checked(redact)
        self._config = None if config is None else redacted_config(self._redact, as_config(config))
        self._on_config_change = on_config_change
        self._codec = Codec(serializer, result_type)
        self._fsync = fsync if isinstance(fsync, bool) else to_seconds(fsync, "fsync")
        # Launched again by `lockstitch supervise`: the first launch has begun anew already.
        self._fresh = bool(fresh) and os.environ.get("LOCKSTITCH_RELAUNCH") != "1"
        self._read_only = bool(read_only)
        self._clock = CLOCK.get()
        self._storage = current_storage()
        self._opening = threading.RLock()
        self._store: Store | None = None
        self._snapshot: Snapshot[Ledger] | None = None
        self._used = False
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __repr__(self) -> str:
        state = "read-only" if self._read_only else "open" if self.is_open else "closed"

        return f"<Checkpoint {self._path!r}, {state}>"

    @property
    def path(self) -> str:
        """The file's real path."""
        return self._path

    @property
    def is_open(self) -> bool:
        """True while this object holds the file open for writing; never in a forked child."""
        return self._store is not None and self._store.journal.is_mine

    # Life

    def __enter__(self) -> Self:
        if self._read_only:
            self._source()
        else:
            self._opened()

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> Store:
        """Lock, read and, if there is none, create the file; return it as it is when it is open."""
        if self._store is not None:
            return self._store
        with self._opening:
            if self._store is None:
                self._refuse_read_only("open")
                self._drop_snapshot()
                self._store = self._open()
                self._used = True

            return self._store

    def _open(self) -> Store:
        journal: Journal[Ledger] = Journal(
            self._path, fsync=self._fsync, storage=self._storage, fold=Ledger
        )
        journal.open(self._new_header, fresh=self._fresh)
        store = Store(journal, self._codec, self._clock, self._redact)
        try:
            self._check_serializer(journal.header)
            store.new_config = self._settle_config(journal)
            store.compact_if_worth_it(journal.size)
        except BaseException:
            journal.close(None)
            raise
        # Set aside once: opened a second time, the file is the one that was begun then.
        self._fresh = False
        self._finalizer = weakref.finalize(self, _close_quietly, store)

        return store

    def _new_header(self) -> Header:
        import uuid  # noqa: PLC0415 - needed once in the life of a file

        return Header(
            batch=str(uuid.uuid4()),
            created_at=iso(self._clock.wall()),
            serializer=self._codec.serializer.name,
            config=self._config or {},
            salt=new_salt(),
        )

    def _check_serializer(self, header: Header) -> None:
        given = self._codec.serializer.name
        if header.serializer != given:
            raise UsageError(
                f"{self._path} was written with the serializer {header.serializer!r}, not "
                f"{given!r}; pass serializer= to say that you trust it (the file's word is "
                "not enough)"
            )

    def _settle_config(self, journal: Journal[Ledger]) -> dict[str, Any] | None:
        """Compare the configs; return the new one if it is another and is to be kept."""
        if self._config is None:
            return None
        stored = journal.header.config if journal.fold.config is None else journal.fold.config
        differences = changes(stored, self._config)
        if not differences:
            return None
        if self._on_config_change == "refuse":
            raise ConfigMismatch(self._path, differences)

        return self._config

    def close(self) -> None:
        """Sync, seal and unlock the file; idempotent. Reading stays possible.

        Raises:
            OSError, DurabilityUnknown: the disk failed at the last moment; the lock is free all
            the same.
        """
        with self._opening:
            self._drop_snapshot()
            store = self._store
            if store is None:
                return
            try:
                store.close()
            finally:
                # Still open only for a signal handler that has interrupted a save.
                if not store.journal.is_open:
                    self._store = None
                    if self._finalizer is not None:
                        self._finalizer.detach()

    def _drop_snapshot(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.close()

    def _refuse_read_only(self, what: str) -> None:
        if self._read_only:
            raise UsageError(f"{self._path} is open read-only, so it cannot {what}")

    def _source(self) -> Source:
        """Return what to read from: the open file, or a snapshot once this object is closed."""
        if self._store is not None:
            return self._store.journal
        if not self._read_only and not self._used:
            return self._opened().journal
        with self._opening:
            if self._snapshot is None:
                snapshot = Snapshot(self._path, self._storage.files, Ledger)
                weakref.finalize(self, snapshot.close)
                self._check_serializer(snapshot.header)
                self._snapshot = snapshot

            return self._snapshot

    def refresh(self) -> None:
        """Look at the file anew; only a read-only (or closed) checkpoint needs it.

        Raises:
            FileNotFoundError, CheckpointDamaged, UsageError.
        """
        if self._store is None and (self._read_only or self._used):
            with self._opening:
                if self._snapshot is None:
                    self._source()
                else:
                    self._snapshot.refresh()

    # Reading

    def __contains__(self, id: object) -> bool:
        """Tell whether an item is finished, whatever its status."""
        store = self._store
        source = self._source() if store is None else store.journal

        return (id if type(id) is str else as_id(id)) in source.fold.index

    def __getitem__(self, id: str) -> Record:
        """Return the record of a finished item; raises `KeyError`."""
        return get(self._source(), self._codec, as_id(id))

    def get(self, id: str) -> Record | None:
        """Return the record of an item, None if it is not finished."""
        try:
            return self[id]
        except KeyError:
            return None

    def __len__(self) -> int:
        return len(self._source().fold.index)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of the finished items, in the order of the file."""
        return (id for id, _ in self._source().fold.offsets(None))

    def __bool__(self) -> bool:
        return True  # an empty checkpoint is a checkpoint: `checkpoint or default` must not drop it

    def records(self, *, status: str | Iterable[str] | None = None) -> Iterator[Record]:
        """Yield the last record of each id, lazily, in the order of the file.

        `status` narrows it to one status, or to several.
        """
        return self._records(self._source(), statuses(status))

    def _records(self, source: Source, wanted: frozenset[str] | None) -> Iterator[Record]:
        # A generator of this object: `Checkpoint(path).records()` must keep the file open for as
        # long as somebody iterates, though nobody else holds the checkpoint.
        yield from records(source, self._codec, wanted)

    def stats(self) -> Stats:
        """Return the history: runs, pauses, counts per status, why the last run ended."""
        return stats(self._source())

    # Writing

    def save(self, id: str, result: Any = None, *, status: str = "ok") -> None:
        """Store the record of an item. Once this returns, it survives what `fsync` promises.

        An id that has a record already gets a new one; the last one counts.

        Raises:
            SerializationFailed: the result would not come back equal; nothing was written.
            OSError: the disk refused; nothing was written, and the next save may well succeed.
            DurabilityUnknown: the disk did not confirm; see there.
        """
        store = self._store
        if store is None:
            self._refuse_read_only("save")
            store = self._opened()
        store.finish(as_id(id), status, result=result)

    def flush(self) -> None:
        """Return once every save so far is on the disk, whatever `fsync` is.

        Raises:
            DurabilityUnknown: the disk did not confirm.
        """
        if self._store is not None:
            self._store.journal.flush()

    def forget(self, ids: Iterable[str]) -> int:
        """Drop all that is known of `ids`, so that they run again; return how many had a record.

        The file is rewritten whole, at once, or not at all.

        Raises:
            OSError: it could not be rewritten; nothing changed.
        """
        self._refuse_read_only("forget")
        if isinstance(ids, str):
            raise UsageError(f"forget takes several ids, such as [{ids!r}]")
        gone = {as_id(id) for id in ids}
        store = self._opened()
        known = sum(id in store.ledger.index for id in gone)
        store.forget(gone)

        return known

    def compact(self) -> None:
        """Rewrite the file without superseded lines. Records and history stay.

        Raises:
            OSError: it could not be rewritten; nothing changed.
        """
        self._refuse_read_only("compact")
        self._opened().compact()

    # Files that are not open

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> Verification:
        """Read a whole file and say what is wrong with it. Writes nothing, needs no lock.

        Raises:
            OSError, UsageError: there is nothing to read, or it is of a newer format.
        """
        from ._repair import verify  # noqa: PLC0415 - a person's tool, not a run's

        return verify(os.path.realpath(os.fspath(path)), current_storage())

    @staticmethod
    def repair(path: str | os.PathLike[str]) -> Verification:
        """Keep every intact record, put damaged bytes into `<path>.damaged-…`, say what was done.

        Raises:
            CheckpointLocked: a run has it open.
            CheckpointDamaged: nothing in the file proves itself, so there is nothing to keep.
        """
        from ._repair import repair  # noqa: PLC0415 - as above

        return repair(os.path.realpath(os.fspath(path)), current_storage())

    @staticmethod
    def adopt(
        path: str | os.PathLike[str],
        rows: Iterable[Any],
        *,
        key: Key | None = None,
        status: str = "ok",
        config: Mapping[str, Any] | None = None,
        serializer: Serializer | Any = None,
        result_type: Any = None,
    ) -> int:
        """Take in results from before; return how many were new.

        Each row becomes the result of the id that `key` finds in it. Ids that the checkpoint has
        already keep their record. The other arguments are those of `Checkpoint`.

        Raises:
            UsageError: a row has no id. The rows before it have been taken in.
        """
        find = key_function(key)
        check_text(status, "status=")
        new = 0
        with Checkpoint(
            path, config=config, serializer=serializer, result_type=result_type, fsync=False
        ) as checkpoint:
            for row in rows:
                id = find(row)
                if id not in checkpoint:
                    checkpoint.save(id, row, status=status)
                    new += 1

        return new


def opened(checkpoint: Checkpoint) -> Store:
    """Return the store of a checkpoint, opening it if need be. For the batch; not public."""
    return checkpoint._opened()  # noqa: SLF001 - one room of the house; users have `with`


def statuses(given: str | Iterable[str] | None) -> frozenset[str] | None:
    """Return a status argument as a set; None stands for all."""
    if given is None:
        return None

    return frozenset([given] if isinstance(given, str) else given)


def _close_quietly(store: Store) -> None:
    """Seal a checkpoint that nobody closed; a courtesy that nothing relies on."""
    if store.journal.is_mine:
        store.close()
