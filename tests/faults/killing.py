"""Kills at random moments: `python -m tests.faults.killing FOLDER KILLS`.

Four processes at a time, four threads each, every process with a checkpoint of its own and at the
same time after one that all of them want. All are killed after a random time, and started again
until everything is stored. Forks of one warm process, so that a round costs milliseconds.
"""

import os
import random
import signal
import sys
import threading
import time

from lockstitch import Checkpoint, CheckpointLocked

PROCESSES = 4
THREADS = 4

#: Items of one checkpoint.
ITEMS = 60


def result_of(id):
    """Return what an item gives: mostly a few bytes, now and then up to 1 MB."""
    number = int(id[1:])
    size = (10, 200, 3_000, 40_000, 1_000_000)[number % 5 if number % 10 else 4]

    return {"of": id, "fill": "x" * random.Random(id).randint(1, size)}


def work(path, shared, told):
    """Save what is missing, with threads, and tell each id once its save has returned."""
    checkpoint = Checkpoint(path, fsync=os.getpid() % 3 != 0)
    mine = [id for id in (f"i{number}" for number in range(ITEMS)) if id not in checkpoint]
    random.shuffle(mine)
    if mine:
        os.write(told, b"".join(b"+%b\n" % id.encode() for id in checkpoint))

    def save(part):
        for id in part:
            checkpoint.save(id, result_of(id))
            os.write(told, b"+%b\n" % id.encode())

    threads = [threading.Thread(target=save, args=(mine[k::THREADS],)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        with Checkpoint(shared) as common:
            common.save(f"by {os.getpid()}", os.getpid())
            os.write(told, b"=by %d\n" % os.getpid())
    except CheckpointLocked:
        pass
    for thread in threads:
        thread.join()
    checkpoint.close()
    os.write(told, b".\n")


def fork(path, shared):
    """Start a worker; return its pid and where it tells what it has done."""
    there, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(there)
        try:
            work(path, shared, told)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(told)

    return pid, there


def listen(there):
    """Return the lines a worker has told, down to the last whole one."""
    with open(there, "rb") as file:
        return [line for line in file.read().decode().split("\n")[:-1] if line]


def check(path, acknowledged):
    """Compare a checkpoint with what was acknowledged; every value in it must be the item's."""
    with Checkpoint(path, read_only=True) as reader:
        found = {record.id: record.result for record in reader.records()}
    assert acknowledged <= found.keys(), acknowledged - found.keys()
    assert all(result == result_of(id) for id, result in found.items())


def round_of(paths, shared, acknowledged, common):
    """Let all work for a random time, kill them, and take down what they had told."""
    workers = [fork(path, shared) for path in paths]
    time.sleep(random.expovariate(1 / 0.02))
    killed, ended = 0, []
    for pid, _ in workers:
        os.kill(pid, signal.SIGKILL)
    for path, (pid, there) in zip(paths, workers, strict=True):
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, status
        for line in listen(there):
            if line == ".":
                ended.append(path)
            elif line[0] == "=":
                common.add(line[1:])
            else:
                acknowledged[path].add(line[1:])

    return killed, ended


def lines_of(path):
    """Return how many lines each id has: one, however often its process died."""
    import json
    from collections import Counter

    with open(path, "rb") as file:
        return Counter(data["id"] for data in map(json.loads, file) if "id" in data)


def main():
    folder, goal = sys.argv[1], int(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")
    until, kills, finished, number = time.monotonic() + seconds, 0, 0, 0
    shared, common = f"{folder}/shared", set()
    paths = []
    acknowledged = {}
    while kills < goal and time.monotonic() < until:
        while len(paths) < PROCESSES:
            paths.append(f"{folder}/{number}")
            acknowledged[paths[-1]] = set()
            number += 1
        killed, ended = round_of(paths, shared, acknowledged, common)
        kills += killed
        for path in ended:
            check(path, {f"i{number}" for number in range(ITEMS)})
            assert set(lines_of(path).values()) == {1}
            assert Checkpoint.verify(path).ok
            paths.remove(path)
            finished += 1
            os.unlink(path)
            os.unlink(f"{path}.lock")
        # Beside those that finish, some are looked at in the middle of their work.
        for path in random.sample(paths, min(1, len(paths))):
            if os.path.exists(path):
                check(path, acknowledged[path])
    for path in paths:  # and now to the end
        while not round_of_one(path, shared, acknowledged, common):
            pass
        check(path, {f"i{number}" for number in range(ITEMS)})
        finished += 1
    with Checkpoint(shared) as last:
        assert common <= set(last), common - set(last)
    assert not [name for name in os.listdir(folder) if ".tmp-" in name]
    print(kills, finished)


def round_of_one(path, shared, acknowledged, common):
    pid, there = fork(path, shared)
    told = listen(there)
    os.waitpid(pid, 0)
    common.update(line[1:] for line in told if line[0] == "=")

    return "." in told


if __name__ == "__main__":
    main()
