"""Scripts that measure against peers and print ratios; a package for `python -m benchmarks.study`."""
