"""Strict by default: warnings are errors (pyproject), types and ranks are not promoted implicitly.

Also float64 everywhere, four host devices, no network, no display.
"""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version

# Thousands of small programs are compiled once and run once: compile fast rather than run fast. Without the emitters,
# which build each fusion with MLIR, compiling takes less than half as long; what is fused is the same. Only jaxlib 0.10
# has a way back. Splitting such small programs over threads costs a fifth to two fifths more.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# For who runs tests again and again: set JAX_COMPILATION_CACHE_DIR, and programs are compiled once in that folder's
# life.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from helpers import promoting

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "rows(names, whole, quick): parametrizes by `whole` with --full, else by `quick`"
    )


def pytest_collection_finish() -> None:
    """Tracing makes garbage collection go through everything that was imported, again: a third of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every row of every product, not only a part that covers it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for marker in metafunc.definition.iter_markers("rows"):
        names, whole, quick = marker.args
        rows = list(whole if metafunc.config.getoption("--full") else quick)
        ids = ["-".join(map(str, row)) if isinstance(row, tuple) else str(row) for row in rows]
        metafunc.parametrize(names, rows, ids=ids)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether --full is given."""
    return request.config.getoption("--full")


@pytest.fixture
def promotes() -> Iterator[None]:
    """Types and ranks are promoted, as by default, for files whose tests rely on it."""
    with promoting():
        yield


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
