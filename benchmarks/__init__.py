"""How fast lockstitch is, against floors and peers: `python -m benchmarks`."""
