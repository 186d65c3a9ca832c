"""Benchmarks: `python benchmarks/run.py` compares jaxplain with its peers; see README.md.

run.py                 every row of `rows.py`, and memory by number of steps (≤ 10 minutes on 2 cores)
run.py --method gradient --problem vgg112 --peer captum    some rows
run.py --chunks        time by chunk size (decides the default)
run.py --compiling     analysis, tracing and compile times and memory next to jax.grad's, unrolled and scanned
run.py --prototypes    activation maximization next to a loop in Python
run.py --accuracy      completeness and distance to the exact integral, by quadrature rule
"""

import argparse
import json
import pathlib
import sys
import tempfile

import environment
import report
from environment import HERE, limit_cpus, machine
from rows import ROWS

ROW_PARTS = ("method", "problem", "peer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--chunks", action="store_true", help="time by chunk size instead of the comparison")
    what.add_argument("--accuracy", action="store_true", help="accuracy of the quadrature rules instead")
    what.add_argument("--compiling", action="store_true", help="times before the first result, and memory, instead")
    what.add_argument("--prototypes", action="store_true", help="steps per second of activation maximization instead")
    for part in ROW_PARTS:
        parser.add_argument(
            f"--{part}", choices=sorted({getattr(row, part) for row in ROWS}), help=f"rows of this {part}"
        )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--seconds", type=float, default=20, help="timed seconds per row; at least three repeats")
    parser.add_argument(
        "--json", type=pathlib.Path, help="where results go; default results/<date>-<kind of machine>.json"
    )
    options = parser.parse_args()
    limit_cpus(options.threads)  # before JAX is imported
    about = machine(options.threads)
    if options.chunks:
        suffix, results, table = "-chunks", *_chunks()
    elif options.compiling:
        suffix, results, table = "-compiling", *_compiling()
    elif options.prototypes:
        suffix, results, table = "-prototypes", *_prototypes()
    elif options.accuracy:
        suffix, results, table = "-accuracy", *_accuracy()
    else:
        suffix, results, table = "", *_comparison(options)
    print("\n" + table)
    complete = not any(getattr(options, part) for part in ROW_PARTS)
    path = options.json or (HERE / "results" / f"{about['date']}-{about['kind']}{suffix}.json" if complete else None)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": about} | results, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten: {path.name}")
    return 0 if all(row["agreement"]["agrees"] for row in results.get("rows", [])) else 1


def _comparison(options: argparse.Namespace) -> tuple[dict, str]:
    from compare import OURS, compare

    wanted = {part: getattr(options, part) for part in ROW_PARTS if getattr(options, part)}
    rows = [row for row in ROWS if all(getattr(row, part) == value for part, value in wanted.items())]
    if not rows:
        raise SystemExit("no such row; known rows: " + ", ".join(f"{row.name} ({row.peer})" for row in ROWS))
    python = {OURS: sys.executable} | dict.fromkeys((row.peer for row in rows), environment.peers_python())
    results = []
    with tempfile.TemporaryDirectory() as name, environment.workers(python, options.threads) as sides:
        folder = pathlib.Path(name)
        files = _problem_files({row.problem for row in rows}, folder)
        for row in rows:
            result = compare(row, sides, files[row.problem], options.seconds, folder)
            print(" | ".join(report.comparison_cells(result)), flush=True)
            results.append(result)
        versions = {side: worker.versions for side, worker in sides.items()}
    table = report.comparison(results)
    memory = []
    if not wanted:
        from sweeps import by_steps

        memory = by_steps()
        table += "\n\n" + report.memory(memory)
    return {"versions": versions, "rows": results, "memory": memory}, table


def _problem_files(names: set[str], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    from problems import PROBLEMS, save

    return {name: save(PROBLEMS[name](), folder) for name in names}


def _chunks() -> tuple[dict, str]:
    from side_jaxplain import versions
    from sweeps import by_chunk

    rows = by_chunk()
    return {"versions": versions(), "chunks": rows}, report.chunks(rows)


def _compiling() -> tuple[dict, str]:
    from compiling import measure
    from side_jaxplain import versions

    rows = measure()
    return {"versions": versions(), "compiling": rows}, report.compiling(rows)


def _prototypes() -> tuple[dict, str]:
    from prototypes import measure
    from side_jaxplain import versions

    rows = measure()
    return {"versions": versions(), "prototypes": rows}, report.prototypes(rows)


def _accuracy() -> tuple[dict, str]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from accuracy import measure
    from side_jaxplain import versions

    rows = measure()
    return {"versions": versions(), "accuracy": rows}, report.accuracy(rows)


if __name__ == "__main__":
    sys.exit(main())
