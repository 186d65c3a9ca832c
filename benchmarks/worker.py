"""One side in its own process: `python worker.py SIDE THREADS`, then one JSON command per line, one JSON reply each.

Commands:
- prepare: give a job a name and a warm-up run; replies with what is known about it.
- time: run it; replies with seconds per run and processor time.
- save: write its last result as .npy.
- drop: forget it.

A side is a module `side_<name>.py` with `versions`, `limit_threads`, `prepare` and `to_numpy`.
"""

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

import numpy as np
from environment import limit_cpus


def serve(side_name: str, threads: int) -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print, which must not mix with replies

    def reply(content: dict) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    jobs: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def perform(request: dict) -> Any:
        command, name = request["command"], request["name"]
        if command == "prepare":
            jobs[name], about = side.prepare(request["job"])
            start = time.perf_counter()
            last[name] = jobs[name]()
            return about | {"warm_up_seconds": time.perf_counter() - start}
        if command == "time":
            last.pop(name, None)
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["count"]):
                last[name] = jobs[name]()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            return {"seconds": seconds / request["count"], "total": seconds, "cpu": cpu}
        if command == "save":
            np.save(request["path"], side.to_numpy(last[name]))
            return None
        if command == "drop":
            return bool(jobs.pop(name, None)) | (last.pop(name, None) is not None)
        raise ValueError(command)

    try:
        limit_cpus(threads)
        side = importlib.import_module(f"side_{side_name}")
        side.limit_threads(threads)
        reply({"result": side.versions()})
    except Exception:
        reply({"error": traceback.format_exc()})
        return
    for line in sys.stdin:
        try:
            reply({"result": perform(json.loads(line))})
        except Exception:
            reply({"error": traceback.format_exc()})


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
