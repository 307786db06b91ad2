"""Scripts that measure against peers, and a package: `python -m benchmarks.results`, `python -m benchmarks.study`."""
