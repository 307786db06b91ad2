"""The controlled study: labels of one set of rollouts against each other where the truth is known (docs/study.md).

    python -m benchmarks.study                                                # config.yaml: all seeds and settings
    python -m benchmarks.study --config benchmarks/study/small.yaml           # minutes
    python -m benchmarks.study --parts labels,prms --seeds 0 1 --jobs 2       # a part of it
    python -m benchmarks.study --config benchmarks/study/gpu.yaml --jobs 6    # a harder task, models of 14 million

A run is a set of *units*, a JSON file each, written when the unit is finished and skipped when it is there: so a run
that was stopped goes on, and more seeds, labels or parts are added to what there is. Every call ends with the report
of all units so far: `report.md`, `results.csv` and figures.
"""
