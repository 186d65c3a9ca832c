"""One row of the registry: tune both sides, time them in turn, check that they computed the same thing."""

import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
from environment import Worker, busy_seconds
from rows import Row

SHORT = 0.5  # seconds; shorter runs are repeated and averaged, because the first one finds cold caches
QUIET = 0.1  # share of the machine; rounds in which other processes took more are left out while three remain
OURS = "jaxplain"


def compare(row: Row, sides: dict[str, Worker], problem: pathlib.Path, budget: float, folder: pathlib.Path) -> dict:
    """`budget`: seconds for the timed repeats of this row (never fewer than three repeats)."""
    clock = time.perf_counter()

    def progress(doing: str) -> None:
        print(f"  {time.perf_counter() - clock:5.0f} s  {row.name}: {doing}", file=sys.stderr, flush=True)

    ours, peer = sides[OURS], sides[row.peer]
    job = {"problem": str(problem), "method": row.method}
    progress(f"tuning {len(row.ours)} + {len(row.theirs)} settings")
    jobs = {
        "ours": (ours, job | {"settings": _tune(ours, job, row.ours, row.ours_tuning)}),
        "peer": (peer, job | {"settings": _tune(peer, job, row.theirs, row.theirs_tuning)}),
        "floor": (ours, job | {"method": row.floor, "settings": {}}),
    }
    progress("compiling and warming up")
    about = {name: worker.call("prepare", name=name, job=job) for name, (worker, job) in jobs.items()}
    counts = {name: max(1, round(SHORT / known["warm_up_seconds"])) for name, known in about.items()}
    one_round = sum(about[name]["warm_up_seconds"] * count for name, count in counts.items())
    repeats = int(np.clip(budget / one_round, 3, 15))
    progress(f"{repeats} rounds of some {one_round:.1f} s, in turn")
    rounds = [_round({name: (worker, counts[name]) for name, (worker, _) in jobs.items()}) for _ in range(repeats)]
    quiet = [r for r in rounds if not r["others"] > QUIET]
    used = quiet if len(quiet) >= 3 else rounds
    times = {name: np.array([r[name] for r in used]) for name in jobs}

    progress("checking that the results agree")
    agreement = _agreement(row, ours, peer, jobs["ours"][1], folder)
    for name, (worker, _) in jobs.items():
        worker.call("drop", name=name)
    return {
        "method": row.method,
        "problem": row.problem,
        "peer": row.peer,
        "ours": about["ours"] | {"settings": jobs["ours"][1]["settings"], "seconds": float(np.median(times["ours"]))},
        "theirs": about["peer"] | {"settings": jobs["peer"][1]["settings"], "seconds": float(np.median(times["peer"]))},
        "floor": about["floor"] | {"gradients": row.gradients, "seconds": float(np.median(times["floor"]))},
        "ours_over_peer": _spread(times["ours"] / times["peer"]),
        "ours_over_floor": _spread(times["ours"] / (row.gradients * times["floor"])),
        "agreement": agreement,
        "rounds": rounds,
        "rounds_used": len(used),
        "others": float(np.median([r["others"] for r in used])),
    }


def _round(jobs: dict[str, tuple[Worker, int]]) -> dict[str, float]:
    """Seconds of each job, one after the other, and the share of the machine taken by other processes."""
    out: dict[str, float] = {}
    spent = cpu = 0.0
    busy = busy_seconds()
    for name, (worker, count) in jobs.items():
        reply = worker.call("time", name=name, count=count)
        out[name] = reply["seconds"]
        spent, cpu = spent + reply["total"], cpu + reply["cpu"]
    return out | {"others": max(0.0, busy_seconds() - busy - cpu) / (spent * (os.cpu_count() or 1))}


def _tune(worker: Worker, job: dict, candidates: tuple[dict, ...], smaller: dict[str, Any]) -> dict[str, Any]:
    """The fastest of the candidates: the best of three runs each, of one run where that is long."""
    if len(candidates) == 1:
        return candidates[0]
    seconds = []
    for settings in candidates:
        known = worker.call("prepare", name="candidate", job=job | {"settings": settings | smaller})
        warm_up = known["warm_up_seconds"]
        runs = 3 if warm_up < 1 else 1
        seconds.append(min(worker.call("time", name="candidate", count=1)["seconds"] for _ in range(runs)))
        worker.call("drop", name="candidate")
    return candidates[int(np.argmin(seconds))]


def _agreement(row: Row, ours: Worker, peer: Worker, job: dict, folder: pathlib.Path) -> dict[str, Any]:
    a, b = _result(ours, "ours", folder), _result(peer, "peer", folder)
    if row.compare == "draws":
        means = a.mean(), b.mean()
        off = float(abs(means[0] - means[1]) / max(1, abs(means[1])))  # a correlation may be 0
        return {"means": [float(m) for m in means], "limit": row.limit, "agrees": off <= row.limit}
    distance = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    # Half of the examples are nearer than the median: a tie or kink that falls otherwise moves one example, not all.
    axes = tuple(range(1, a.ndim))
    each = np.sqrt(np.sum((a - b) ** 2, axes) / np.sum(b**2, axes))
    if row.compare == "equal":
        out = {"relative_l2": distance, "median_example": float(np.median(each)), "limit": row.limit}
        return out | {"agrees": out["median_example"] <= row.limit}
    ours.call("prepare", name="error", job=job | {"method": f"{row.method}_error"})
    error = _result(ours, "error", folder)
    ours.call("drop", name="error")
    # Two independent means differ by sqrt(2) standard errors.
    ratio = float(np.linalg.norm(a - b) / np.sqrt(2 * np.sum(error**2)))
    agrees = 1 / row.limit <= ratio <= row.limit
    return {"relative_l2": distance, "over_expected": ratio, "limit": row.limit, "agrees": agrees}


def _result(worker: Worker, name: str, folder: pathlib.Path) -> np.ndarray:
    path = folder / f"{name}.npy"
    worker.call("save", name=name, path=str(path))
    return np.load(path).astype(np.float64)


def _spread(values: np.ndarray) -> dict[str, Any]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)], "all": values.tolist()}
