"""A line proves itself, and damage is a decision."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstitch._frames import Scan, seal, strip_seal, unseal

SALT = 144_101_786
OTHER = 7


def lines_of(*plan, salt=SALT):
    """Return sealed lines for (n, s) pairs."""
    return [seal(b'{"id":"i%d","status":"ok"}' % n, n, s, salt) for n, s in plan]


def scan_of(lines, proven=0):
    scan = Scan(salt=SALT, proven=proven, start=100)
    kept = [line for _, line in scan.frames([lines])]
    return scan, kept


@given(
    st.dictionaries(st.text(), st.integers(), min_size=1).map(repr),
    st.integers(1, 10**18 - 1),
    st.integers(0, 10**18 - 1),
    st.integers(1, 2**32 - 1),
)
def test_a_sealed_line_proves_itself_and_gives_its_payload_back(text, n, s, salt):
    """What is sealed is unsealed to the same numbers and the same bytes."""
    payload = b'{"k":%a}' % text.encode("unicode_escape")
    line = seal(payload, n, s, salt)

    assert unseal(line[:-1], salt) == (n, s)
    assert strip_seal(line) == payload


def test_no_flipped_bit_of_a_line_goes_unnoticed():
    """Each single bit of a line, turned over, makes the line prove nothing."""
    line = lines_of((12, 3))[0][:-1]
    for position in range(len(line)):
        for bit in range(8):
            changed = bytearray(line)
            changed[position] ^= 1 << bit
            assert unseal(bytes(changed), SALT) is None


def test_no_cut_line_proves_itself():
    """Each proper beginning of a line proves nothing."""
    line = lines_of((12, 3))[0][:-1]

    assert not any(unseal(line[:cut], SALT) for cut in range(len(line)))


def test_a_line_of_another_file_proves_nothing():
    """The salt makes lines of another file, or of an older one, foreign."""
    assert unseal(lines_of((1, 0), salt=OTHER)[0][:-1], SALT) is None


def test_a_seal_inside_a_result_is_not_taken_for_the_seal():
    """The seal is taken from the right."""
    inner = lines_of((9, 8))[0][:-1]
    line = seal(b'{"id":"a","result":%b}' % inner, 2, 1, SALT)

    assert unseal(line[:-1], SALT) == (2, 1)
    assert strip_seal(line) == b'{"id":"a","result":%b}' % inner


GOOD = lines_of((1, 0), (2, 1), (3, 2), (4, 3))
TABLE = {
    # name: lines, (kept numbers, damaged, torn)
    "whole": (GOOD, 4, 0, 0),
    "blank lines": ([GOOD[0], b"\n", GOOD[1], b"\n", GOOD[2], GOOD[3], b"\n"], 4, 0, 0),
    "torn last": ([*GOOD[:3], GOOD[3][:-9]], 3, 0, 1),
    "torn newline": ([*GOOD[:3], GOOD[3][:-1]], 3, 0, 1),
    "dropped": ([GOOD[0], *GOOD[2:]], 3, 1, 0),
    "first dropped": (GOOD[1:], 3, 1, 0),
    "doubled": ([*GOOD[:2], GOOD[1], *GOOD[2:]], 4, 1, 0),
    "doubled at the end": ([*GOOD, GOOD[3]], 4, 1, 0),
    "swapped": ([GOOD[0], GOOD[2], GOOD[1], GOOD[3]], 3, 2, 0),
    "foreign in the middle": ([*GOOD[:2], b'{"x":1}\n', *GOOD[2:]], 4, 1, 0),
    "foreign at the end": ([*GOOD, b'{"x":1}\n'], 4, 0, 1),
    "lines of an older file at the end": ([*GOOD, *lines_of((5, 4), salt=OTHER)], 4, 0, 1),
    "a header at the end": ([*GOOD, seal(b'{"lockstitch":1}', 0, 0, 0)], 4, 1, 0),
    "zeros in what is proven": ([GOOD[0], bytes(len(GOOD[1])) + GOOD[2], GOOD[3]], 2, 2, 0),
    "zeros after it": (
        [*lines_of((1, 0), (2, 0)), b"\0" * 50 + b"\n", *lines_of((4, 0), (5, 0))],
        4,
        0,
        2,
    ),
    "proven lines missing at the end": (lines_of((1, 0), (2, 1)), 2, 0, 0),
    "CR LF": ([line[:-1] + b"\r\n" for line in GOOD], 0, 0, 4),
    "s that is no past number": (lines_of((1, 0), (2, 2)), 1, 0, 1),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_wrong_at_or_before_the_proven_number_is_damage(name):
    """And what is wrong after it is torn; whatever it is, intact lines are kept."""
    lines, kept, damage, torn = TABLE[name]
    scan, got = scan_of(lines)

    assert (len(got), len(scan.damage)) == (kept, damage)
    assert len(scan.wrong) - len(scan.damage) == torn


def test_lines_that_the_header_promises_are_missed():
    """A file that was published whole is damaged when its end is gone."""
    scan, _ = scan_of(lines_of((1, 0), (2, 1)), proven=4)

    assert [wrong.reason for wrong in scan.damage] == ["records 3 to 4 are missing at the end"]


def crash_state(rng):
    """Return the lines written, the image that a crash leaves of them, and the last synced n."""
    lines, synced, n = [], 0, 0
    unsynced_from = 0
    for _ in range(rng.randrange(1, 12)):
        for _ in range(rng.randrange(1, 5)):
            n += 1
            lines += lines_of((n, synced))
        if rng.random() < 0.6:
            synced, unsynced_from = n, len(lines)
    safe, rest = b"".join(lines[:unsynced_from]), bytearray(b"".join(lines[unsynced_from:]))
    # What was not synced may be short, or zeros in any block, or old bytes of the disk.
    for start in range(0, len(rest), 32):
        if rng.random() < 0.3:
            filler = rng.choice([b"\0", b"x", b"\n"])
            rest[start : start + 32] = filler * len(rest[start : start + 32])
    del rest[rng.randrange(len(rest) + 1) :]
    return lines, safe + bytes(rest), synced


def split(image):
    parts = image.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_no_legal_crash_is_called_damage_and_nothing_synced_is_lost():
    """4,000 crashes at random moments, with random loss of what had not been synced."""
    rng = random.Random(1)
    for _ in range(4000):
        lines, image, synced = crash_state(rng)
        scan, kept = scan_of(split(image))
        assert not scan.damage
        assert kept[:synced] == lines[:synced]
        assert set(kept) <= set(lines)
        assert len(kept) + scan.last >= synced


def test_every_flip_before_the_proven_end_is_damage():
    """Each byte of the proven part, changed, is reported.

    One is not: the line break before the last line. Without it the only witness is gone as well.
    """
    lines = lines_of(*((n, n - 1) for n in range(1, 12)))
    image, end = b"".join(lines), len(b"".join(lines[:-1])) - 1
    for position in range(end):
        for bit in (0, 6):
            changed = bytearray(image)
            changed[position] ^= 1 << bit
            scan, kept = scan_of(split(bytes(changed)))
            assert scan.damage
            assert set(kept) <= set(lines)
