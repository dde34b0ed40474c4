"""The promises of docs/guarantees.md against every fault that can be produced here.

`pytest -n 2 tests/faults` prints how many trials each kind of fault has had; `nightly` does more.
"""
