"""Engines that are no `concurrent.futures.Executor` by themselves; each brings its own extra."""
