"""Bytes that changed: flipped, cut, moved, mixed with those of other files, by anybody's hand."""

import itertools
import os
import random

import pytest

from lockstitch import Checkpoint, CheckpointDamaged, UsageError
from lockstitch._frames import unseal
from lockstitch._records import parse_header

from .disk import Disk
from .oracle import JSON, PATH, goes_on, on, records_of

COUNT = 12
VALUES = {f"i{number}": ("ok", f"value {number}") for number in range(COUNT)}

KINDS = ["closed", "killed", "compacted", "killed, fsync=False"]


def image_of(kind, values=VALUES):
    """Return the bytes of a checkpoint that was closed, killed or just compacted."""
    disk = Disk()
    checkpoint = on(disk, lambda: Checkpoint(PATH, serializer=JSON, fsync="False" not in kind))
    for id, (_, result) in values.items():
        checkpoint.save(id, result)
    if kind == "compacted":
        checkpoint.compact()
    killed = disk.bytes(PATH)
    checkpoint.close()

    return disk.bytes(PATH) if kind == "closed" else killed


def opened(data):
    """Open as a writer does; return the records, or the refusal, which leaves every byte."""
    disk = Disk({PATH: data})
    checkpoint = on(disk, lambda: Checkpoint(PATH, serializer=JSON))
    try:
        found = records_of(checkpoint)
    except (CheckpointDamaged, UsageError) as error:
        found = error
    if isinstance(found, Exception):
        assert disk.bytes(PATH) == data
    checkpoint.close()

    return found


def proven(data):
    """Return the ids whose records the lines that are whole call stored."""
    first, *lines = data.splitlines(keepends=True)
    header = parse_header(first)
    seals = [unseal(line[:-1], header.salt) for line in lines]
    highest = max([header.proven, *(s for _, s in filter(None, seals))])

    return {f"i{n}" for n in range(min(highest, COUNT))}


def judged(data):
    """Open; return True if refused. What is shown is true, and all that is called stored."""
    got = opened(data)
    if isinstance(got, Exception):
        return True
    assert got.items() <= VALUES.items()
    assert proven(data) <= got.keys()

    return False


def repaired(data, must=frozenset(), intact=VALUES):
    """Repair; what proves itself is kept, nothing is invented, and the work goes on."""
    disk = Disk({PATH: data})
    try:
        on(disk, lambda: Checkpoint.repair(PATH))
    except (CheckpointDamaged, UsageError):
        assert disk.bytes(PATH) == data
        assert not must
        return
    with on(disk, lambda: Checkpoint(PATH, serializer=JSON)) as checkpoint:
        found = records_of(checkpoint)
    assert must <= found.keys()
    goes_on(disk, {id: {value} for id, value in found.items()})
    assert found.items() <= intact.items()


@pytest.mark.parametrize("kind", KINDS)
def test_two_bits_of_every_byte_are_noticed(kind, trials):
    """Refused, or the record is not called stored by any other; never a wrong value."""
    image = image_of(kind)
    for position, bit in itertools.product(range(len(image)), range(2)):
        changed = bytearray(image)
        changed[position] ^= 1 << (0 if bit else 1 + position % 7)
        judged(bytes(changed))
    trials(11, 2 * len(image))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_byte_is_an_earlier_state_or_refused(kind, trials):
    """Inside the header and below the proven length it is refused; else whole records stay."""
    image = image_of(kind)
    header = image.index(b"\n") + 1
    for cut in range(len(image)):
        got = opened(image[:cut])
        if cut < header or kind == "compacted":
            assert isinstance(got, CheckpointDamaged)
        else:
            whole = image[header:cut].count(b"\n")
            assert got == dict(list(VALUES.items())[:whole])
    trials(13, len(image))


def edits(lines):
    """Yield every deletion, doubling, swap and move of the lines behind the header."""
    first, rest = lines[0], lines[1:]
    places = range(len(rest))
    for k in places:
        yield [first, *rest[:k], *rest[k + 1 :]]
        yield [first, *rest[: k + 1], *rest[k:]]
    for a, b in itertools.combinations(places, 2):
        swapped = list(rest)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield [first, *swapped]
    for a, b in itertools.permutations(places, 2):
        moved = list(rest)
        moved.insert(b, moved.pop(a))
        yield [first, *moved]


@pytest.mark.parametrize("kind", KINDS)
def test_moved_lines_are_never_taken_for_others(kind, trials):
    """Each edit is refused or costs only what no line calls stored; repair finds what is whole."""
    lines = image_of(kind).splitlines(keepends=True)
    count = 0
    for changed in edits(lines):
        data = b"".join(changed)
        refused = judged(data)
        if refused and count % 5 == 0:
            kept = {f"i{n}" for n in range(COUNT) if lines[n + 1] in changed}
            repaired(data, kept)
        count += 1
    trials(12, count)


def test_lines_of_other_files_are_never_accepted(trials):
    """Blocks of an older or another file, at the end or in the middle: refused or cut off."""
    mine = image_of("killed").splitlines(keepends=True)
    other = {f"i{n}": ("ok", f"other {n}") for n in range(COUNT)}
    count = 0
    for kind in KINDS:
        theirs = image_of(kind, other).splitlines(keepends=True)
        for place in range(1, len(mine) + 1):
            for block in (theirs, theirs[place:], theirs[1:2], theirs[place - 1 : place]):
                for data in (
                    [*mine[:place], *block, *mine[place:]],
                    [*mine[:place], *block],
                    [*mine[:place], *block, *mine[place + 1 :]],
                ):
                    judged(b"".join(data))
                    count += 1
    trials(12, count)


@pytest.mark.parametrize("kind", KINDS)
def test_zeroed_sectors_are_never_silent(kind, trials):
    """Zeros in place of what had been stored are refused; behind it they are cut off."""
    image = image_of(kind)
    for sector, start in itertools.product((1, 16, 64, 512), range(0, len(image), 16)):
        stop = min(start + sector, len(image))
        judged(image[:start] + bytes(stop - start) + image[stop:])
        assert opened(image + bytes(stop - start)) == VALUES
        trials(12, 2)


def test_random_damage_is_never_taken_for_a_record(trials):
    """Bytes overwritten, inserted and removed at random places, several at once, and repaired."""
    image, chance = image_of("closed"), random.Random(12)
    for _ in range(800):
        data = bytearray(image)
        for _ in range(chance.randint(1, 4)):
            at, size = chance.randrange(len(data)), chance.randint(1, 90)
            match chance.randrange(4):
                case 0:
                    data[at : at + size] = chance.randbytes(min(size, len(data) - at))
                case 1:
                    data[at:at] = chance.randbytes(size)
                case 2:
                    del data[at : at + size]
                case 3:
                    data[at:at] = data[(other := chance.randrange(len(data))) : other + size]
        judged(bytes(data))
        repaired(bytes(data))
        trials(12)


# Another hand, while the file is open


HANDS = {
    "changed to the same size": lambda path: path.write_bytes(
        path.read_bytes().replace(b"value 3", b"value 4")
    ),
    "deleted": os.unlink,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "grown": lambda path: path.open("ab").write(b"{}\n"),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("round", range(20))
@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_another_hand_at_an_open_file_is_noticed_or_harmless(tmp_path, hand, round, trials):
    """The next save is refused, or what it acknowledges is there; what changed is not believed."""
    path = tmp_path / "run.jsonl"
    checkpoint = Checkpoint(path)
    for number in range(5 + round):
        checkpoint.save(f"i{number}", f"value {number}")
    HANDS[hand](path)
    if hand == "changed to the same size":
        with pytest.raises(CheckpointDamaged, match="changed after it was read"):
            checkpoint["i3"]
        checkpoint.save("next", 1)
        checkpoint.close()
        assert isinstance(Checkpoint.verify(path).damage, tuple)
        with pytest.raises(CheckpointDamaged):
            Checkpoint(path).save("x", 1)
    else:
        for _ in range(2):
            with pytest.raises(CheckpointDamaged):
                checkpoint.save("next", 1)
        checkpoint.close()
    trials(13)


@pytest.mark.parametrize("round", range(20))
def test_a_file_replaced_by_one_of_the_same_size_is_noticed(tmp_path, round, trials):
    """It is another file, however alike: nothing is written to the one that is gone."""
    path, copy = tmp_path / "run.jsonl", tmp_path / "copy"
    checkpoint = Checkpoint(path)
    for number in range(round + 1):
        checkpoint.save(f"i{number}", number)
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    with pytest.raises(CheckpointDamaged, match="deleted or replaced"):
        checkpoint.save("next", 1)
    checkpoint.close()
    with Checkpoint(path) as again:
        assert len(again) == round + 1
    trials(13)
