"""The benchmark runs whole, leaves nothing out in silence, and compares like with like."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import WORKLOADS, main
from benchmarks._case import Stopwatch
from benchmarks._measure import Case, Rig, ratios, values
from benchmarks.report import Budget, pasted

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_runs_in_its_smallest_form(workload, tmp_path):
    """Every way that is installed does its work, and what was found is written down."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", workload),
            *("--largest", "6", "--rounds", "1", "--output", str(tmp_path)),
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / f"{workload}.md").read_text(encoding="utf-8")
    assert re.search(r"^\| [^|]*(lockstitch|batch\.run)", table, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".svg"} == {
        f"{workload}.md",
        "budgets.md",
        "rounds.json",
    }


def says(name, statement, needs=()):
    return Case(name, "imports:fresh", {"statement": statement}, needs)


def test_cases_take_turns_and_nobody_is_always_first(tmp_path):
    """Each round runs every case once, and begins with another one."""
    log = tmp_path / "log"
    cases = [says(name, f"open({str(log)!r}, 'a').write('{name}')") for name in "ab"]
    found = Rig(tmp_path, rounds=2).rounds_of("turns", cases)

    assert log.read_text() == "abba"
    assert [len(found[name]) for name in "ab"] == [2, 2]


def test_what_is_not_installed_is_named(tmp_path):
    """A peer that cannot run is left out, and said to be."""
    rig = Rig(tmp_path, rounds=1)
    found = rig.rounds_of("peers", [says("here", "pass"), says("gone", "pass", ("no_such_thing",))])

    assert set(found) == {"here"}
    assert rig.skipped == ["gone: no_such_thing is not installed"]


def test_a_case_that_fails_is_an_error(tmp_path):
    """What is installed and does not work is not passed over."""
    with pytest.raises(RuntimeError, match="broken failed"):
        Rig(tmp_path, rounds=1).rounds_of("peers", [says("broken", "1 / 0")])


def test_a_ratio_is_taken_within_its_round():
    """A round in which the machine was slow counts like any other."""
    found = ratios([{"us": 2}, {"us": 30}], [{"us": 1}, {"us": 10}], "us")

    assert found.values == (2, 3)
    assert f"{found:.1f}" == "2.5 (2.0 to 3.0)"


def test_one_round_has_no_spread():
    """A single figure stands alone."""
    assert f"{values([{'us': 2}], 'us'):.1f}" == "2.0"


def test_the_clock_runs_from_the_first_item_to_the_end_of_the_last():
    """What happens before the first item is drawn, or after the last, is not counted."""
    watch = Stopwatch()
    items = watch.over("abc", [2, 3])
    assert watch.readings == []

    seen = [(item, [reading["done"] for reading in watch.readings]) for item in items]

    assert seen == [("a", [0]), ("b", [0]), ("c", [0, 2])]
    assert [reading["done"] for reading in watch.readings] == [0, 2, 3]


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        (Budget("time", 1.5, 1.5), "kept"),
        (Budget("time", 1.5, 1.6), "**missed**"),
        (Budget("speed", 4, 4.0, at_most=False), "kept"),
        (Budget("speed", 4, 3.9, at_most=False), "**missed**"),
        (Budget("time", 1.5, None), "not measured"),
        (Budget("time", 1.5, math.nan), "not measured"),
    ],
)
def test_a_budget_is_kept_missed_or_not_measured(budget, verdict):
    """A figure that is not there keeps no promise."""
    assert budget.verdict == verdict


def test_a_page_takes_over_what_stands_between_its_markers():
    """The old table goes, everything around it stays."""
    page = "above\n<!-- save -->\nold\n<!-- end of save -->\nbelow\n"
    new = "above\n<!-- save -->\n\nnew\n\n<!-- end of save -->\nbelow\n"

    assert pasted(page, "save", "new") == new
    assert pasted(new, "save", "new") == new


def test_the_page_about_performance_has_a_place_for_every_table():
    """Every table can be measured anew with one command."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in (*WORKLOADS, "budgets"):
        pasted(page, name, "")
    with pytest.raises(ValueError, match="nothing"):
        pasted(page, "nothing", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rounds", "0"], "a whole number from 1, not '0'"),
        (["--largest", "many"], "a whole number from 1, not 'many'"),
        (["--paste", "none.md"], "--paste none.md: "),
        (["--paste", "empty.md"], "the page has no <!-- save -->"),
        (["nosuch"], "no such workload: nosuch; there are save, resume"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    tmp_path, monkeypatch, capsys, options, told
):
    """A typing error does not cost a quarter of an hour."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.md").write_text("# Nothing")
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
    with pytest.raises(SystemExit):
        main()

    assert told in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["empty.md"]
