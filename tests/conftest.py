"""What every test here gets: a look at what it left behind, and a few small helpers."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import hypothesis
import pytest

from lockstitch._clock import CLOCK
from lockstitch._files import Files, SystemFiles
from lockstitch._journal import STORAGE, Storage
from lockstitch._lock import RunLock

# How long an example takes says more about the machine than about the library.
hypothesis.settings.register_profile("lockstitch", deadline=None)
hypothesis.settings.load_profile("lockstitch")

# A shell that starts the tests in the background has SIGINT ignored, and all that they start would
# inherit that, and could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Seconds a thread that was told to end may take to do so.
_PATIENCE = 10.0


def _descriptors():
    """Return what is open in this process, where the system tells."""
    found = set()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for number in numbers:
        try:
            found.add((int(number), os.readlink(f"/proc/self/fd/{number}")))
        except OSError:  # the descriptor of this very listing
            continue

    return found


def _runs_on_an_engine(request):
    parameters = getattr(request.node, "callspec", None)

    return parameters is not None and bool(getattr(parameters.params.get("driver"), "engine", None))


def pytest_make_parametrize_id(val):
    """Name a parameter by its text, without the address that differs in every process."""
    if isinstance(val, str):
        return None

    return re.sub(r" at 0x[0-9a-f]+", "", ascii(val))[:120]


@pytest.fixture(autouse=True)
def no_leaks(request):
    """No test leaves a descriptor, a thread or a temporary file of the library behind."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(_PATIENCE)
    # An engine that runs on opens connections whenever it likes.
    left = set() if _runs_on_an_engine(request) else _descriptors() - descriptors
    if left:  # held by objects that nobody has any more, perhaps
        gc.collect()
        left &= _descriptors()
    temporary = [] if folder is None else [str(each) for each in folder.rglob("*.tmp-*")]
    alive = [thread.name for thread in set(threading.enumerate()) - threads]

    assert (left, alive, temporary) == (set(), [], [])


class FaultyFiles(SystemFiles):
    """The machine's files; every call is counted, and can be made to fail.

    `on[name]` is called with the arguments of the call `name` before it is made; it may raise,
    and what it returns, unless None, is returned instead.
    """

    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.written = 0
        self.on = {}

    @staticmethod
    def failing(code, *, after=0, times=1):
        """Return a hook that raises the error `code` on some calls."""
        seen = iter(range(1 << 30))

        def hook(*_):
            if after <= next(seen) < after + times:
                raise OSError(code, os.strerror(code))

        return hook


def _counted(name):
    real = vars(SystemFiles)[name]

    def call(self, *args):
        self.calls[name] += 1
        hook = self.on.get(name)
        answer = None if hook is None else hook(*args)
        if answer is None:
            answer = real.__get__(self)(*args)
        if name == "write":
            self.written += answer
        return answer

    return call


for _name in [name for name in vars(Files) if not name.startswith("_")]:
    setattr(FaultyFiles, _name, _counted(_name))


@pytest.fixture
def files():
    """Put file calls that can be counted and failed under every checkpoint of the test."""
    faulty = FaultyFiles()
    token = STORAGE.set(Storage(faulty, lambda path: RunLock(path, CLOCK.get().wall)))
    yield faulty
    STORAGE.reset(token)


@pytest.fixture
def child():
    """Start Python programs; those that still run at the end of the test are killed."""
    started = []

    def start(program, *arguments, **options):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run_child(child):
    """Run a Python program to its end and return what it printed; its failure is the test's."""

    def run(program, *arguments):
        process = child(program, *arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        return out.strip()

    return run
