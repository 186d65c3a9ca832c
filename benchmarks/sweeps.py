"""Sweeps over our own settings: time by chunk size, and compiled memory by number of steps."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from problems import PROBLEMS
from side_jaxplain import compile_job

CHUNKS = (1, 2, 5, 10, 25, 50)
BATCHES = (1, 16, 256)
STEPS = (10, 50, 200, 1000)
MEMORY_LIMIT = 8e9  # bytes; larger programs are compiled and reported, but not run


def _seconds(run: Callable[[], Any], at_least: float = 0.05) -> float:
    """Seconds of one run, averaged over as many as fill `at_least`."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < at_least:
        jax.block_until_ready(run())
        count += 1
    return (time.perf_counter() - start) / count


def by_chunk(names: tuple[str, ...] = ("mlp", "cnn_maxpool"), method: str = "integrated_gradients") -> list[dict]:
    """Time over the floor (n × one compiled gradient of the batch) for each network, batch and chunk size.

    Floor and chunk sizes run in turn, several rounds; the ratio of each round is taken within the round.
    """
    count = {"integrated_gradients": "n_steps", "smoothgrad": "n_samples"}[method]
    rows = []
    for name in names:
        for batch in BATCHES:
            problem = PROBLEMS[name](batch)
            jobs = {0: compile_job(problem, "floor", {})}
            jobs |= {c: compile_job(problem, method, {count: 50, "chunk_size": c}) for c in CHUNKS}
            temp = {c: jobs[c][0].memory_analysis().temp_size_in_bytes for c in jobs}
            jobs = {c: job for c, job in jobs.items() if temp[c] < MEMORY_LIMIT}
            runs = {c: (lambda job=job: job[0](*job[1])) for c, job in jobs.items()}
            for run in runs.values():
                jax.block_until_ready(run())
            rounds = 3 if batch == 256 and name != "mlp" else 7
            times = np.array([[_seconds(run) for run in runs.values()] for _ in range(rounds)])
            ratios = dict(zip(runs, (times / (50 * times[:, :1])).T, strict=True))
            for chunk in CHUNKS:
                row = {"network": name, "method": method, "batch": batch, "chunk_size": chunk}
                row |= {"temp_bytes": temp[chunk], "compile_seconds": jobs[chunk][2] if chunk in jobs else None}
                if chunk in jobs:
                    seconds = times[:, list(runs).index(chunk)]
                    row |= {"seconds": float(np.median(seconds)), "best_seconds": float(seconds.min())}
                    row |= {
                        "floor_seconds": float(np.median(times[:, 0])),
                        "best_floor_seconds": float(times[:, 0].min()),
                    }
                    row |= {"over_floor": float(np.median(ratios[chunk])), "over_floor_all": ratios[chunk].tolist()}
                    row["best_over_floor"] = row["best_seconds"] / (50 * row["best_floor_seconds"])
                rows.append(row)
            print(_line(rows[-len(CHUNKS) :]), flush=True)
    return rows


def _line(rows: list[dict]) -> str:
    cells = [f"{row['chunk_size']}: {row['over_floor']:.2f}" for row in rows if "seconds" in row]
    return f"{rows[0]['network']}, batch {rows[0]['batch']}: time ÷ floor by chunk (median)  {'  '.join(cells)}"


def by_steps(name: str = "cnn_maxpool", batch: int = 16) -> list[dict]:
    """Temporary memory of the compiled program: must not grow with the number of steps."""
    problem = PROBLEMS[name](batch)
    rows = []
    for method, count in (("integrated_gradients", "n_steps"), ("smoothgrad", "n_samples")):
        for n in STEPS:
            compiled, _, _ = compile_job(problem, method, {count: n})
            memory = compiled.memory_analysis().temp_size_in_bytes
            rows.append({"network": name, "method": method, "batch": batch, "n": n, "temp_bytes": memory})
    floor = compile_job(problem, "floor", {})[0].memory_analysis().temp_size_in_bytes
    rows.append({"network": name, "method": "one gradient", "batch": batch, "n": 1, "temp_bytes": floor})
    return rows
