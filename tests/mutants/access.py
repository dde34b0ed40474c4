"""Ways to break who may do what: one writer, any readers."""

from .mutant import Mutant

ACCESS = (
    Mutant(
        "deleted-file-written-to",
        "a save into a file that was deleted or replaced raises",
        "_commit",
        "if status.st_nlink and status.st_size == end:",
        "if status.st_size == end:",
        "test_journal.py::test_a_file_that_somebody_else_changed_is_left_as_it_is",
    ),
    Mutant(
        "changed-size-ignored",
        "a save into a file that somebody else has written to raises",
        "_commit",
        "if status.st_nlink and status.st_size == end:",
        "if status.st_nlink:",
        "test_journal.py::test_a_file_that_somebody_else_changed_is_left_as_it_is",
    ),
    Mutant(
        "deleted-file-written-to-unsynced",
        "without syncs, a file that was deleted is noticed before long",
        "_commit",
        "sync or self._unlooked > _LOOK or self",
        "sync or self",
        "test_journal.py::test_without_fsync_a_foreign_hand_is_noticed_all_the_same",
    ),
    Mutant(
        "changed-size-ignored-unsynced",
        "without syncs, a changed length is noticed at the next save",
        "_commit",
        " or self._files.size(self.fd) != self.state[0]:",
        ":",
        "test_journal.py::test_without_fsync_a_foreign_hand_is_noticed_all_the_same",
    ),
    Mutant(
        "lock-not-taken",
        "a second process is locked out",
        "_lock",
        "self._lock.acquire(blocking=False)",
        'open(self._path, "a").close()',
        "test_lock.py::test_a_second_process_is_told_who_has_it",
    ),
    Mutant(
        "lock-freed-after-opening",
        "a second process is locked out for as long as the first one writes",
        "_journal",
        "            self._open_locked(new_header)\n",
        "            self._open_locked(new_header)\n            self._lock.release()\n",
        "test_lock.py::test_a_second_process_is_told_who_has_it",
    ),
    Mutant(
        "lock-freed-before-the-end",
        "the lock is held until the last line is on the disk",
        "_journal",
        "        commit.check_free()\n        try:\n",
        "        commit.check_free()\n        self._lock.release()\n        try:\n",
        "test_lock.py::test_the_lock_is_held_until_the_last_line_is_on_the_disk",
    ),
    Mutant(
        "lock-kept-after-failed-opening",
        "whatever stopped an opening, the next one is not locked out",
        "_journal",
        "        except BaseException:\n            self._abandon()\n            raise",
        "        except BaseException:\n            raise",
        "test_journal.py::test_a_failed_opening_frees_the_lock",
    ),
    Mutant(
        "child-writes",
        "a forked child has no part in the file",
        "_commit",
        "        if self._born != _forks:\n            raise UsageError(",
        "        if self._born < 0:\n            raise UsageError(",
        "test_lock.py::test_a_forked_child_has_no_part_in_the_file",
    ),
    Mutant(
        "reader-takes-the-lock",
        "a reader needs no lock, and works beside a writer",
        "_checkpoint",
        "                snapshot = Snapshot(",
        "                self._storage.lock(self._path).acquire()\n"
        "                snapshot = Snapshot(",
        "test_lock.py::test_a_reader_writes_nothing_and_locks_nothing",
    ),
    Mutant(
        "reader-mends",
        "a reader changes nothing, not even a torn tail",
        "_snapshot",
        "            contents.check(self.path)\n",
        "            contents.check(self.path)\n"
        "            writer = self._files.open_append(self.path)\n"
        "            self._files.truncate(writer, contents.scan.end)\n"
        "            self._files.close(writer)\n",
        "test_lock.py::test_a_reader_writes_nothing_and_locks_nothing",
    ),
    Mutant(
        "reader-trusts-its-first-look",
        "what a writer is just appending is no damage to a reader",
        "_snapshot",
        "            CLOCK.get().wait(queue.SimpleQueue[None](), _SECOND_LOOK)\n"
        "            fd, contents = self._look()",
        "            raise",
        "test_checkpoint.py::test_a_finding_counts_only_at_the_second_look",
    ),
    Mutant(
        "mode-not-kept",
        "a file that was rewritten keeps its mode",
        "_publish",
        "            files.copy_owner(fd, like)",
        "            pass",
        "test_checkpoint.py::test_a_new_file_is_private_and_keeps_its_mode",
    ),
)
