"""The library, broken on purpose: `python -m tests.mutants` asks whether the tests would notice."""
