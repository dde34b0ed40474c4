"""The list of mutants is kept up with the sources, and with the tests that it names."""

import re
import shutil
from collections import Counter
from pathlib import Path

import attrs
import pytest

from tests.mutants.__main__ import MUTANTS, ROOT
from tests.mutants.mutant import SOURCE


def copied(mutant, folder):
    """Return the copy, in `folder`, of the module that a mutant changes."""
    file = Path("lockstitch", f"{mutant.module}.py")
    (folder / "lockstitch").mkdir()
    shutil.copyfile(SOURCE / file, folder / file)

    return folder / file


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_exactly_one_place(mutant, tmp_path):
    """The sources move on; a mutant that fits them no more would break nothing and survive."""
    file = copied(mutant, tmp_path)
    before = file.read_text(encoding="utf-8")
    mutant.apply(tmp_path)

    assert file.read_text(encoding="utf-8") != before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"old": "\0"}, "its text is 0 times in"),
        ({"old": "import"}, r"its text is \d+ times in"),
        ({"new": "("}, "was never closed"),
    ],
)
def test_a_mutant_that_does_not_fit_is_an_error(change, complaint, tmp_path):
    """It is not taken for one that survives, and the copy is left as it was."""
    mutant = attrs.evolve(MUTANTS[0], **change)
    file = copied(mutant, tmp_path)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=f"{mutant.name}: .*{complaint}"):
        mutant.apply(tmp_path)

    assert file.read_bytes() == before


def test_a_mutant_has_a_name_of_its_own_and_killers_that_exist():
    """A test that was renamed is found here, and not after minutes."""
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    for mutant in MUTANTS:
        for killer in mutant.killers.split():
            name, _, test = killer.partition("::")
            text = (ROOT / "tests" / name).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), killer
