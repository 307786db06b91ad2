"""Does units, several at a time: each as soon as what it needs is there, in a process of its own."""

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from .config import StudyConfig
from .devices import prepare_process, release_memory
from .units import Unit, requirements, write_result


def check_units(config: StudyConfig, units: Iterable[Unit]) -> None:
    """Raises `ValueError` where a config class refuses what a unit will hand to it, before any unit is begun."""
    from . import policies, prms

    build = {
        "labels": ("labeling", prms.labeling_config),
        "prm": ("prm", prms.prm_config),
        "rft": ("rft", policies.rft_config),
        "grpo": ("grpo", policies.grpo_config),
    }
    checked = set()
    for unit in units:
        if unit.kind not in build or (setting := (unit.kind, unit.difficulty, unit.label)) in checked:
            continue
        checked.add(setting)
        section, build_config = build[unit.kind]
        try:
            build_config(config, unit)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{section}` of {unit.name}: {error}") from error


def run_unit(config: StudyConfig, unit: Unit) -> str:
    """Does a unit and writes its result, with the time it took; gives an error as text, empty where there is none."""
    from transformers.utils import logging

    from . import measures, policies, prms  # in the process that works

    logging.disable_progress_bar()
    work = {
        "labels": prms.make_labels,
        "prm": prms.train_prm,
        "pool": measures.make_pool,
        "scores": measures.measure_prm,
        "rft": policies.run_rft,
        "grpo": policies.run_grpo,
    }[unit.kind]
    start, cpu = time.perf_counter(), time.process_time()
    log = unit.directory(config.output_dir) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            result = work(config, unit)
    except Exception:  # one unit that fails shall not end the others; the run then ends with exit code 1
        return traceback.format_exc()
    finally:
        release_memory(config.device)
    times = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - cpu}
    write_result(unit.path(config.output_dir), {**result, **times})
    return ""


def run_units(config: StudyConfig, units: list[Unit], num_jobs: int) -> list[Unit]:
    """Does what is not finished, in order, each unit as soon as what it needs is there. Gives those not done."""
    root = config.output_dir
    done = {unit for unit in units if unit.path(root).exists()}
    waiting = [unit for unit in units if unit not in done]
    total, failed, running = len(units), set(), {}
    print(f"{len(done)} of {total} units are finished in {root}", flush=True)
    # Spawned: a forked process would inherit torch's threads in an unknown state.
    with ProcessPoolExecutor(
        num_jobs, multiprocessing.get_context("spawn"), prepare_process, (config.device,)
    ) as pool:
        while True:
            for unit in [unit for unit in waiting if all(needed in done for needed in requirements(unit))]:
                if len(running) == num_jobs:
                    break
                waiting.remove(unit)
                running[pool.submit(run_unit, config, unit)] = unit, time.perf_counter()
            if not running:
                return [unit for unit in units if unit in failed or unit in waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, start = running.pop(future)
                if error := future.result():
                    failed.add(unit)
                    print(f"failed: {unit.name}\n{error}", flush=True)
                else:
                    done.add(unit)
                    print(f"[{len(done)}/{total}] {unit.name}: {time.perf_counter() - start:.0f} s", flush=True)
