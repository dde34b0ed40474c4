"""The shape of the house: public names, who imports whom, what an import costs."""

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import lockstitch
from lockstitch import (
    BatchStopped,
    CheckpointDamaged,
    CheckpointLocked,
    ConfigMismatch,
    DurabilityUnknown,
    ItemFailed,
    Limit,
    LockstitchError,
    RateLimited,
    Record,
    SerializationFailed,
    Summary,
    UsageError,
)

PACKAGE = Path(lockstitch.__file__).parent

#: Bottom-up: a module imports only from those above it in this list.
LAYERS = """
_errors _printable _clock _headers _model _retry _guard _ids _frames _records _ledger _scheduler
_serializers _config _redaction _files _lock _reading _publish _snapshot _commit _journal _repair
_store _checkpoint _input _run _plan _attempt _envelope _worker _progress _settings _session
_executors _engine _pools _async _attempting _signals _batch _calls _stored _loop _resumable
guards retries
""".split()

#: Modules that do no I/O: they import nothing that could.
PURE = """
_errors _printable _model _retry _guard _ids _frames _records _ledger _scheduler _config
_redaction _input _envelope
""".split()

#: The one module that may import each of these.
HOMES = {
    "filelock": {"_lock"},
    "cattrs": {"_serializers"},
    "time": {"_clock"},
    "signal": {"_signals"},
}

EFFECTS = {"os", "io", "pathlib", "socket", "subprocess", "threading", "time", "signal", "tempfile"}


def modules():
    return {path.stem: path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}


def imports(path):
    """Yield (module, is_own) of every import statement in a file, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # for type checkers: nothing of it runs
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name.split(".")[0], False) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [name.name for name in node.names]
            yield from ((name.split(".")[0], True) for name in names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], node.module.startswith("lockstitch")


def test_every_module_has_its_place():
    """No module is outside of the layers; `cli` and `testing`, packages, stand on top of all."""
    assert set(modules()) == set(LAYERS)


def test_a_module_imports_only_from_below():
    """The layers have no cycle and no step upwards."""
    for name, path in modules().items():
        below = set(LAYERS[: LAYERS.index(name)])
        above = {module for module, own in imports(path) if own} - below
        assert not above, f"{name} imports {above}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_can_do_no_io(name):
    """What decides and what parses can be tested as tables, because it can do nothing else."""
    assert not {module for module, _ in imports(PACKAGE / f"{name}.py")} & (
        EFFECTS - ({"pathlib"} if name == "_ids" else set())
    )


@pytest.mark.parametrize("library", HOMES)
def test_a_library_with_a_home_is_used_only_there(library):
    """One adapter a dependency; one reader of time; one place for signals."""
    users = {name for name, path in modules().items() if (library, False) in set(imports(path))}

    assert users <= HOMES[library]


def test_the_public_names_are_frozen():
    """A name is added or removed on purpose, here and in the documentation."""
    assert lockstitch.__all__ == sorted(lockstitch.__all__)
    assert set(lockstitch.__all__) == {
        "Attempt", "Backoff", "BatchStopped", "Checkpoint", "CheckpointDamaged",
        "CheckpointLocked", "ConfigMismatch", "DurabilityUnknown", "ErrorInfo", "Failure",
        "ItemFailed", "JSONSerializer", "Limit", "LockstitchError", "Plan", "RateLimitGuard",
        "RateLimited", "Record", "ResumableBatch", "RetryPolicy", "SerializationFailed",
        "Serializer", "Summary", "UsageError", "current_attempt", "resumable",
    }  # fmt: skip


def public_callables():
    for module in ("lockstitch", "lockstitch.testing", "lockstitch.cli", "lockstitch.engines.ray"):
        namespace = importlib.import_module(module)
        for name, value in vars(namespace).items():
            if name.startswith("_") or not getattr(value, "__module__", "").startswith(
                "lockstitch"
            ):
                continue
            yield f"{module}.{name}", value
            if inspect.isclass(value):
                for inner, member in vars(value).items():
                    if not inner.startswith("_") and (
                        inspect.isfunction(member) or isinstance(member, property)
                    ):
                        yield f"{module}.{name}.{inner}", member


def test_every_public_callable_is_documented():
    """Whoever hovers over a public name learns what it does."""
    from lockstitch._files import Files

    inherited = set(vars(Files))
    bare = [
        name
        for name, value in public_callables()
        if not inspect.getdoc(value) and name.rpartition(".")[2] not in inherited
    ]

    assert [name for name in bare if not name.endswith((".dumps", ".loads"))] == []


SUMMARY = Summary(1, 0, 1, 0, 0, {"ok": 1}, 0, (), 1, 0, 0.0, 1.0, 0.0, None, None)

ERRORS = [
    LockstitchError("x"),
    UsageError("x"),
    CheckpointLocked("p", 7, "h", datetime(2030, 1, 1, tzinfo=UTC)),
    CheckpointLocked("p"),
    CheckpointDamaged("p", 3, 120, "why", "what next"),
    ConfigMismatch("p", {"model": ("a", "b")}),
    DurabilityUnknown("p", ("a", "b"), "why"),
    SerializationFailed("a", "$.x", "why"),
    ItemFailed(Record("a", "error")),
    RateLimited(Limit.after(5, reason="r")),
    BatchStopped("limit", SUMMARY),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_crosses_a_process_boundary(error):
    """An error pickles, and says the same afterwards."""
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_error_is_an_oserror(error):
    """A policy that retries OSError never retries a lock conflict."""
    assert isinstance(error, LockstitchError)
    assert not isinstance(error, OSError)


def test_importing_brings_nothing_that_was_not_asked_for():
    """No asyncio, no multiprocessing, no extra."""
    code = "import sys; old = set(sys.modules); import lockstitch; print(*(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}

    assert not loaded & {"asyncio", "multiprocessing", "tqdm", "orjson", "dask", "ray", "argparse"}


def test_who_stores_plain_data_does_not_pay_for_cattrs(tmp_path):
    """It is imported for the first value that JSON does not know, and where types are asked for.

    Where they are, before the first save: what is forked during an import waits for its lock.
    """
    code = """if True:
        import sys
        from lockstitch import *
        for run in range(2):
            with ResumableBatch("run.jsonl", ["a", "b"]) as batch:
                batch.run(lambda item: {"a": [1, "x", None]})
        Checkpoint("run.jsonl", read_only=True)["a"]
        print("cattrs" in sys.modules)
        Checkpoint("run.jsonl", result_type=list[int])
        print("cattrs" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert done.stdout == "False\nTrue\n"


def test_nothing_is_shared_between_batches_at_module_level():
    """No module keeps mutable state: no list, dict or set at its top level that is not constant."""
    for name in modules():
        module = importlib.import_module(f"lockstitch.{name}")
        for key, value in vars(module).items():
            if not key.startswith("__") and isinstance(value, (list, dict, set)):
                pytest.fail(f"{name}.{key} is a {type(value).__name__}")
