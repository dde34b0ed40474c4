"""A disk that is full at any byte, by a real limit on the size of files."""

import pytest

#: Each limit from 0 on, until the whole program fits; then the space is there again.
PROGRAM = """
import errno, os, resource, sys
from lockstitch import Checkpoint
folder, mode = sys.argv[1], sys.argv[2]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
items = [(f"i{number}", "x" * 7 * number) for number in range(8)]

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

def fill(checkpoint):
    refused = 0
    for id, result in items:
        before = os.path.exists(path) and os.path.getsize(path)
        try:
            checkpoint.save(id, result)
            acknowledged[id] = result
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            assert not before or os.path.getsize(path) == before
            refused += 1
    return refused

def records(checkpoint):
    return {record.id: record.result for record in checkpoint.records()}

trials, refused, size = 0, 1, 0
while refused:
    path, acknowledged = f"{folder}/{size}", {}
    limit(size)
    checkpoint = Checkpoint(path, fsync=size % 2 == 0)
    refused = fill(checkpoint)
    if mode == "same process":
        limit(hard)
        for id, result in items:
            if id not in checkpoint:
                checkpoint.save(id, result)
        checkpoint.close()
    else:
        try:
            checkpoint.close()
        except OSError:  # the last line did not fit either
            pass
        limit(hard)
        with Checkpoint(path) as again:
            assert acknowledged.items() <= records(again).items(), (size, acknowledged)
            for id, result in items:
                if id not in again:
                    again.save(id, result)
    with Checkpoint(path, read_only=True) as reader:
        assert records(reader) == dict(items), size
    report = Checkpoint.verify(path)
    assert report.ok and not report.torn, (size, str(report))
    for name in os.listdir(folder):
        assert ".tmp-" not in name, name
        os.unlink(f"{folder}/{name}")
    trials += 1
    size += 1
print(trials)
"""


@pytest.mark.timeout(300)  # it may share its cores with others
@pytest.mark.parametrize("mode", ["same process", "next start"])
def test_a_disk_that_is_full_at_any_byte_costs_only_a_save(tmp_path, mode, run_child, trials):
    """Nothing is glued to half a line; with space again the same object, or the next, goes on."""
    count = int(run_child(PROGRAM, tmp_path, mode))
    trials(3, count)

    assert count > 700
