"""The kinds of fault, by number, and how the trials of each are counted and shown."""

ROWS = {
    1: "an error at each file call, once and for ever, ten codes",
    2: "the same through real system calls",
    3: "a disk that is full at each byte, then freed",
    4: "a power cut after each call: every state the disk may be in",
    5: "a crash, a resume, a power cut, a resume",
    6: "an error or a kill at each call of opening a file",
    7: "a kill at each system call, and at each byte of a write",
    8: "kills at random moments, until all is done",
    9: "an exception at any moment of a save",
    10: "handlers that save, forks, terminated pools, no exit hooks",
    11: "two flipped bits of each byte",
    12: "lines deleted, doubled, swapped, moved, mixed; zeroed sectors",
    13: "a file cut at each byte; another hand at work on it",
    14: "bytes that nobody has written: fuzz and its corpus",
    15: "any order of calls against a dict, with kills and power cuts",
    16: "locks of stopped, killed, forked holders; odd things at their path",
    17: "eight threads saving beside compactions",
    19: "clocks that jump",
    20: "no descriptors, no memory, no threads",
    21: "no permission, odd modes, links, masks",
    22: "descriptors, threads and files left behind, in every test",
    24: "kills at random moments, thousands",
    25: "a power cut on a real ext4",
    28: "states of the disk in random programs",
    29: "coverage-guided fuzz of the reader",
}


def table(counts, skipped=()):
    """Yield the lines of a table of trials per row; `skipped` are pairs of row and reason."""
    for row, name in ROWS.items():
        if row in counts:
            yield f"{row:>3}  {name:<66} {counts[row]:>9,}"
    for row, reason in skipped:
        yield f"{row:>3}  {ROWS[row]:<66} skipped: {reason}"
    yield f"     {'trials in all':<66} {sum(counts.values()):>9,}"
