"""The peers' environment, the workers, and a description of the machine."""

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
REQUIREMENTS = HERE / "peers-requirements.txt"


def peers_python() -> pathlib.Path:
    """The interpreter of $JAXPLAIN_PEERS, or of a virtual environment that is made once for each requirements file."""
    given = os.environ.get("JAXPLAIN_PEERS")
    if given:
        return _interpreter(pathlib.Path(given))
    version = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "jaxplain" / "peers" / version
    ready = folder / "ready"
    if not ready.exists():
        print(f"installing {REQUIREMENTS.name} into {folder} (once; several minutes)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([_interpreter(folder), "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        ready.touch()
    return _interpreter(folder)


def _interpreter(folder: pathlib.Path) -> pathlib.Path:
    found = [path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists()]
    if not found:
        raise SystemExit(f"{folder} is not a Python environment")
    return found[0]


class Worker:
    """A process with the compiled jobs of one side. It idles, blocked on its input, while others are timed."""

    def __init__(self, side: str, python: pathlib.Path | str, threads: int):
        self.side = side
        self._process = subprocess.Popen(
            [python, HERE / "worker.py", side, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._read()

    def call(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.side} worker ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise SystemExit(f"the {self.side} worker failed:\n{reply['error']}")
        return reply["result"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def workers(sides: dict[str, pathlib.Path | str], threads: int) -> Iterator[dict[str, Worker]]:
    started: dict[str, Worker] = {}
    try:
        for side, python in sides.items():
            started[side] = Worker(side, python, threads)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def limit_cpus(threads: int) -> None:
    """Let this process run on that many processors only (XLA and OpenMP size their thread pools by it)."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def busy_seconds() -> float:
    """Processor seconds that all processes have used since the machine started (Linux; else NaN)."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def machine(threads: int) -> dict[str, Any]:
    """The kind of machine, without its name."""
    processor = "unknown"
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "kind": f"cpu-{os.cpu_count()}cores",
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average_at_start": load,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
