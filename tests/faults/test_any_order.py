"""Any order of calls, kills and power cuts, against a dict."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lockstitch import Checkpoint, CheckpointLocked

from .disk import Disk, Killed
from .oracle import JSON, PATH, is_tidy, on, records_of

IDS = st.sampled_from("abcdef")


class AnyOrder(RuleBasedStateMachine):
    """A checkpoint on a disk that loses what was not synced, against a dict."""

    def __init__(self):
        super().__init__()
        self.disk = Disk()
        #: What is promised, in the order of the file.
        self.model = {}
        #: What a power cut may undo: ids whose last save was not synced.
        self.unsynced = {}
        self.checkpoint = None
        self.config = {"model": 1}

    @initialize(fsync=st.booleans(), drops=st.booleans())
    def begin(self, fsync, drops):
        self.fsync, self.disk.drops = fsync, drops
        self.checkpoint = self.new()

    def new(self, **options):
        return on(
            self.disk,
            lambda: Checkpoint(
                PATH,
                serializer=JSON,
                fsync=self.fsync,
                **{"config": self.config, "on_config_change": "keep", **options},
            ),
        )

    def settled(self):
        self.unsynced.clear()

    @rule(
        id=IDS,
        value=st.none() | st.integers() | st.text(max_size=5) | st.lists(st.booleans(), max_size=3),
        status=st.sampled_from(["ok", "pass", "error"]),
    )
    def save(self, id, value, status):
        if not self.fsync:
            self.unsynced.setdefault(id, []).append(self.model.get(id))
        self.checkpoint.save(id, value, status=status)
        self.model.pop(id, None)
        self.model[id] = (status, value)

    @rule(ids=st.sets(st.sampled_from("abcdefg")))
    def forget(self, ids):
        assert self.checkpoint.forget(ids) == len(ids & self.model.keys())
        for id in ids:
            self.model.pop(id, None)
        self.settled()

    @rule()
    def compact(self):
        self.checkpoint.compact()
        self.settled()

    @rule()
    def flush(self):
        self.checkpoint.flush()
        if self.checkpoint.is_open:
            self.settled()

    @rule()
    def reopen(self):
        self.checkpoint.close()
        self.checkpoint = self.new()
        self.settled()

    @rule()
    def keep_another_config(self):
        self.config = {"model": self.config["model"] + 1}
        self.reopen()

    @rule()
    def second_handle(self):
        if self.checkpoint.is_open:
            with pytest.raises(CheckpointLocked):
                len(self.new())

    @rule(call=st.sampled_from(["write", "sync", "replace"]))
    def die_in_a_save(self, call):
        """Killed in the middle of one more save; what programs see stays."""
        self.disk.before = lambda each: (_ for _ in ()).throw(Killed) if each == call else None
        try:
            self.checkpoint.save("a", "dying")
        except Killed:
            pass
        else:
            self.disk.before = lambda _call: None
            if not self.fsync:
                self.unsynced.setdefault("a", []).append(self.model.get("a"))
            self.model.pop("a", None)
            self.model["a"] = ("ok", "dying")
            return
        before = dict(self.model)
        self.restart()
        found = records_of(self.checkpoint)
        assert found in (before, {**without(before, "a"), "a": ("ok", "dying")})
        self.model = found
        self.settled()

    @rule(data=st.data())
    def power_cut(self, data):
        """One of all states that the disk may be in."""
        self.disk.fine = False
        state = data.draw(st.sampled_from(list(self.disk.states())))
        drops, self.disk = self.disk.drops, Disk(state)
        self.disk.drops = drops
        self.restart()
        found = records_of(self.checkpoint)
        for id in self.model.keys() | found.keys():
            earlier = self.unsynced.get(id, [])
            assert found.get(id) in [self.model.get(id), *earlier], id
        self.model = found
        self.settled()

    def restart(self):
        if self.checkpoint._finalizer is not None:
            self.checkpoint._finalizer.detach()
        self.disk.before = lambda _call: None
        self.disk.restart()
        self.checkpoint = self.new()

    @rule()
    def repair(self):
        self.checkpoint.close()
        if PATH in self.disk.names:
            assert on(self.disk, lambda: Checkpoint.repair(PATH)).ok
        self.checkpoint = self.new()
        self.settled()

    @rule()
    def start_fresh(self):
        self.checkpoint.close()
        self.checkpoint = self.new(fresh=True)
        len(self.checkpoint)
        self.model.clear()
        self.settled()

    @rule()
    def look(self):
        if PATH in self.disk.names and self.checkpoint.is_open:
            with self.new(read_only=True) as reader:
                self.agrees(reader)

    def agrees(self, checkpoint):
        assert list(checkpoint) == list(self.model)
        assert records_of(checkpoint) == self.model

    @invariant()
    def is_the_dict(self):
        if self.checkpoint is not None:
            self.agrees(self.checkpoint)

    def teardown(self):
        if self.checkpoint is not None:
            self.checkpoint.close()
            assert on(self.disk, lambda: Checkpoint.verify(PATH)).ok
            is_tidy(self.disk)
        STEPS.append(1)


def without(model, id):
    return {each: value for each, value in model.items() if each != id}


#: One entry per machine that ran.
STEPS = []


@pytest.mark.timeout(300)  # it may share its cores with others
def test_any_order_of_calls_is_a_dict(trials):
    """300 machines of up to 30 calls: after each, the checkpoint is what the dict is."""
    before = len(STEPS)
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=300, stateful_step_count=30, deadline=None)
    )
    trials(15, len(STEPS) - before)
