"""Ways to break when an item runs: limits, retries, time."""

from .mutant import Mutant

LIMITS = (
    # Limits
    Mutant(
        "limit-uses-an-attempt",
        "a limited item has used up no attempt",
        "_scheduler",
        "        entry.due = now\n        heapq",
        "        entry.due = now\n        entry.used += 1\n        heapq",
        "test_scheduler.py::test_a_limit_stops_all_and_uses_no_attempt_up",
    ),
    Mutant(
        "limit-not-waited-for",
        "nothing starts before a limit ends",
        "_scheduler",
        "            if now < self.resume_at:\n",
        "            if now < 0:\n",
        "test_scheduler.py::test_a_limit_stops_all_and_uses_no_attempt_up",
    ),
    Mutant(
        "earlier-limit-wins",
        "of several limits, the latest end counts",
        "_scheduler",
        "and until <= self.resume_at:",
        "and until >= self.resume_at:",
        "test_scheduler.py::test_of_several_limits_the_latest_end_counts",
    ),
    Mutant(
        "unknown-wait-not-doubled",
        "a limit without a known end is waited for longer each time",
        "_scheduler",
        "self._unknown_wait = growth * self._unknown_wait or UNKNOWN_WAIT",
        "self._unknown_wait = UNKNOWN_WAIT",
        "test_scheduler.py::test_an_unknown_end_is_waited_for_in_doubling_steps",
    ),
    Mutant(
        "unknown-wait-not-reset",
        "after a finished item the next wait is a short one",
        "_scheduler",
        "        self._unknown_wait = self._shortest_wait = 0.0\n        most",
        "        most",
        "test_scheduler.py::test_a_finished_item_makes_the_next_wait_short_again",
    ),
    Mutant(
        "max-wait-ignored",
        "a wait beyond max_wait parks",
        "_scheduler",
        "too_long = until - self._waiting_since > self._rules.max_wait",
        "too_long = False",
        "test_scheduler.py::test_a_limit_beyond_max_wait_parks",
    ),
    Mutant(
        "max-wait-for-each-limit",
        "max_wait bounds all the time in which no item finishes",
        "_scheduler",
        "too_long = until - self._waiting_since > self._rules.max_wait",
        "too_long = until - now > self._rules.max_wait",
        "test_scheduler.py::test_waits_without_progress_add_up_to_one_episode",
    ),
    Mutant(
        "stored-limit-ignored",
        "a limit survives a restart",
        "_session",
        "        if left > 0:\n",
        "        if left < 0:\n",
        "test_drivers.py::test_a_long_limit_parks_and_the_next_start_finishes",
    ),
    Mutant(
        "parking-not-written",
        "the limit that parked a batch is in the file",
        "_session",
        "                self.run.pause(limit, until, "
        '"retry" if self.scheduler.retry_parks else self._by)\n',
        "",
        "test_drivers.py::test_a_long_limit_parks_and_the_next_start_finishes",
    ),
    Mutant(
        "guard-not-asked",
        "nothing is handed out before the guards let it go",
        "_scheduler",
        "        if self._rules.guarded and not self._passed:\n",
        "        if self._rules.guarded and self._passed:\n",
        "test_scheduler.py::test_a_guard_is_asked_before_each_item_and_only_when_there_is_one",
    ),
    Mutant(
        "guard-not-asked-again",
        "a limit that a guard had set is over when the guard says so",
        "_session",
        '        if stored.by == "guard" and self._checks:\n',
        '        if stored.by == "" and self._checks:\n',
        "test_guard.py::test_a_guard_that_lets_go_lifts_its_stored_pause",
    ),
    Mutant(
        "limit-outlives-progress",
        "a stored limit is over once something was finished after it",
        "_ledger",
        " or self.last_item > at\n",
        "\n",
        "test_ledger.py::test_an_item_that_finished_after_a_limit_says_that_it_is_over",
    ),
    # Retries, errors, time
    Mutant(
        "retry-due-ignored",
        "a retry is not tried before it is due",
        "_scheduler",
        "if self._retries and self._retries[0][0] <= now else None",
        "if self._retries else None",
        "test_scheduler.py::test_a_retry_comes_round_when_it_is_due_and_others_go_first",
    ),
    Mutant(
        "stored-attempts-ignored",
        "attempts count across runs",
        "_session",
        "            entry.used = ledger.retries[id][0]\n",
        "            entry.used = 0\n",
        "test_batch.py::test_a_retry_comes_round_again_and_its_attempts_count_over_runs",
    ),
    Mutant(
        "stored-due-ignored",
        "a retry that is due later is so in the next process too",
        "_session",
        "            if id in ledger.due:\n",
        "            if id in ():\n",
        "test_batch.py::test_a_retry_that_is_due_later_survives_a_restart",
    ),
    Mutant(
        "redo-without-fresh-budget",
        "a redo starts with a fresh budget of attempts",
        "_session",
        "        if not again and id in ledger.retries:\n"
        "            entry.used = ledger.retries[id][0]\n",
        "        if again:\n"
        "            entry.used = run.store.journal.read(lambda _: ledger.offset(id))"
        '["attempt"]\n'
        "        if not again and id in ledger.retries:\n"
        "            entry.used = ledger.retries[id][0]\n",
        "test_batch.py::test_a_redo_starts_with_a_fresh_budget_of_attempts",
    ),
    Mutant(
        "errors-in-a-row-not-reset",
        "only errors in a row stop the batch",
        "_scheduler",
        "self.consecutive = 0 if ok else self.consecutive + 1",
        "self.consecutive = self.consecutive + (not ok)",
        "test_scheduler.py::test_errors_in_a_row_stop_the_batch",
    ),
    Mutant(
        "max-time-ignored",
        "after max_time nothing more is handed out",
        "_scheduler",
        "        if now >= self._deadline:\n",
        "        if now < 0:\n",
        "test_scheduler.py::test_max_time_stops_handing_out",
    ),
)
