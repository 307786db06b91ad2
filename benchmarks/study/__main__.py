"""python -m benchmarks.study: see the package."""

import argparse
import fcntl
import os
import time
from pathlib import Path

from trl_erprm.manifest import open_run

from .config import PARTS, read_config
from .devices import DEVICES, check_device
from .runner import check_units, run_units
from .units import Unit, list_units

HERE = Path(__file__).parent


def _number_of_jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "config.yaml")
    parser.add_argument("--output_dir", help="instead of the config's")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}; what they need is done, too")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the config's")
    parser.add_argument("--device", choices=DEVICES, help="instead of the config's")
    parser.add_argument(
        "--jobs",
        type=_number_of_jobs,
        default=1,
        help="processes, a core each; all on the same GPU if there is one",
    )
    parser.add_argument("--report_only", action="store_true", help="only write the report of what is finished")
    parser.add_argument("--write_docs", action="store_true", help="put the results into docs/study.md, too")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts must be of {','.join(PARTS)}, got {', '.join(sorted(unknown))}")
    try:
        config = read_config(args.config, output_dir=args.output_dir, seeds=args.seeds, device=args.device)
        if not args.report_only:
            check_device(config.device)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # a trainer would spread its batches over all GPUs it sees
    root = Path(config.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    unfinished: list[Unit] = []
    started = None
    if not args.report_only:
        from .prms import add_share_errors  # takes seconds to import

        units = list_units(config, parts)
        try:
            check_units(config, units)
            for difficulty in config.difficulties:
                open_run(root / difficulty, config.identity(difficulty), kind="study")
        except ValueError as error:
            parser.error(str(error))
        with open(root / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                parser.error(f"{root} is in use by another run. Give that one more --jobs, or another --output_dir")
            started = None if any(unit.path(root).exists() for unit in units) else time.time()
            unfinished = run_units(config, units, args.jobs)
            for unit in units:
                if unit.kind == "labels" and unit not in unfinished:
                    add_share_errors(config, unit)
    from .published import file_name, write_published
    from .report import write_docs, write_report
    from .results import Results

    if args.write_docs:
        write_docs(config, HERE.parents[1] / "docs" / "study.md")
    write_published(Results.read(config), root / file_name(args.config), started, args.jobs)
    print(f"Report: {write_report(config)}")
    for unit in unfinished:
        print(f"not done: {unit.name}")
    return 1 if unfinished else 0


if __name__ == "__main__":
    raise SystemExit(main())
