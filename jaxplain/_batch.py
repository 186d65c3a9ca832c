"""Explaining many examples: compiled chunks, a progress bar, several devices, and a report of NaN by example."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxplain._checks import checked, one_key, one_of, require_callable
from jaxplain._errors import (
    SAFE_FORMULAS,
    WHY_NOT_FINITE,
    MissingKeyError,
    NonFiniteError,
    SettingError,
    StructureError,
    TransformError,
    explain_error,
)
from jaxplain._explainer import with_info
from jaxplain._types import Args, Explain, PyTree, traits


@checked()
def batched(
    explain: Explain,
    *,
    batch_size: int = 128,
    in_axes: int | None | Sequence[int | None] = 0,
    progress: bool = True,
    on_nan: Literal["raise", "mark", "keep"] = "raise",
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., Any]:
    """Explains a whole data set: `batched(explain)(xs, labels, key=key)` → stacked NumPy arrays.

    Examples run in compiled chunks of `batch_size`. The last chunk is padded with repeats, which are cut off again, so
    there is only one compilation. One chunk is computed while the previous one is copied to the host.

    Arguments:
        explain: An explainer, `jx.with_info(explain)` (then both results are stacked), or any function of one example.
        batch_size: Examples per compiled chunk, a Python integer and a multiple of the number of `devices`.
        in_axes: For each argument 0 (one entry per example) or `None` (the same for all examples, e.g. weights), as in
            `jax.vmap`.
        progress: Whether to show a progress bar.
        on_nan: What happens to examples whose attribution contains NaN or infinity. "raise" raises an error that lists
            them, "mark" sets their entire attribution to NaN, "keep" leaves it unchanged.
        devices: Devices over which every chunk is split. Results are the same as on one device.

    Returns:
        `run(xs, *args, key=None)`. Given arrays or pytrees with a leading axis of examples, it returns the stacked
        results. Given one iterator of batches `(x_batch, *args)`, it returns a generator with the results of each batch
        (an empty batch has an empty result).

        Weights that the explainer closes over are fixed at the first call, as under `jax.jit`. If they change, pass
        them as an argument with `in_axes=None`, or build `run` again.

        A stochastic explainer needs one `key`. Example number i gets `fold_in(key, i)`, so results do not depend on
        `batch_size` or `devices`.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> run = jx.batched(jx.gradient(lambda x: jnp.sum(x**2)), batch_size=2, progress=False)
        >>> print(run(jnp.arange(3.0)[:, None]).ravel())
        [0. 2. 4.]
    """
    require_callable("batched", explain)
    one_of("batched", "on_nan", on_nan, ("raise", "mark", "keep"))
    if devices is not None:
        is_list = isinstance(devices, list | tuple) and all(isinstance(device, jax.Device) for device in devices)
        if not is_list or not devices or len(set(devices)) < len(devices):
            raise SettingError(
                explain_error(
                    "batched: `devices` must be a list of different devices.",
                    got=repr(devices),
                    fix=("devices=jax.devices()", 'devices=jax.devices("cpu")'),
                )
            )
    if devices is not None and batch_size % len(devices):
        raise SettingError(
            explain_error(
                "batched: `batch_size` must be a multiple of the number of devices.",
                got=f"{batch_size} over {len(devices)} devices",
            )
        )
    needs_key, stochastic = traits(explain).needs_key, traits(explain).stochastic

    # One compiled function for the life of `run`, so that later calls with the same shapes do not compile again.
    @jax.jit
    def compiled(mapped: list, shared: list, indices: jax.Array, key: jax.Array | None) -> PyTree:
        def one(mapped: list, index: jax.Array) -> PyTree:
            args = _merge(mapped, shared, _axes(in_axes, len(mapped) + len(shared)))
            return explain(*args) if key is None else explain(*args, key=jax.random.fold_in(key, index))

        return jax.vmap(one)(mapped, indices)

    def explain_arrays(args: Args, key: jax.Array | None, start: int, bar: tqdm) -> PyTree:
        axes = _axes(in_axes, len(args))
        mapped = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        shared = [arg for arg, axis in zip(args, axes, strict=True) if axis is None]
        n = _leading_axis(mapped)
        if n == 0:
            rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), jnp.result_type(a)), mapped)
            like = jax.eval_shape(compiled, rows, shared, jnp.arange(batch_size, dtype=jnp.int32), key)
            return jax.tree.map(lambda out: np.zeros((0, *out.shape[1:]), out.dtype), like)
        outputs: list[PyTree] = []
        running: list[tuple[PyTree, np.ndarray]] = []  # one chunk is computed while another is collected
        for first in range(0, n, batch_size):
            rows = np.minimum(np.arange(first, first + batch_size), n - 1)
            chunk = [_rows(arg, rows) for arg in mapped]
            running.append((compiled(*_place(chunk, shared, rows + start, devices), key), rows[: n - first]))
            if len(running) > 1:
                outputs.append(_collect(*running.pop(0), on_nan, explain, mapped, bar, start))
        outputs.extend(_collect(*last, on_nan, explain, mapped, bar, start) for last in running)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def run(*args: PyTree, key: jax.Array | None = None) -> Any:
        arrays = [arg for arg in args if not isinstance(arg, Iterator)]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arrays, key))):
            raise TransformError(
                explain_error(
                    "batched: what it returns runs outside of JAX transforms.",
                    got="traced arguments, as in jit, vmap or grad",
                    why="it compiles by itself, collects results in NumPy arrays, and looks for NaN in them",
                    fix="jax.jit(jax.vmap(explain))(xs, labels)",
                )
            )
        if needs_key or (key is not None and stochastic):
            key = one_key("batched", key)
        elif key is not None and not hasattr(explain, "stochastic"):
            raise MissingKeyError(
                explain_error(
                    "batched: a key was given, but a plain function does not take one.",
                    fix="use an explainer of this library, or pass keys as a mapped argument",
                )
            )
        else:
            key = None
        if len(args) == 1 and isinstance(args[0], Iterator):
            return _stream(explain_arrays, args[0], key, progress)
        with tqdm(total=_total(args, in_axes), unit="example", disable=not progress) as bar:
            return explain_arrays(args, key, 0, bar)

    return run


def _stream(
    explain_arrays: Callable[..., PyTree], batches: Iterator, key: jax.Array | None, progress: bool
) -> Iterator[PyTree]:
    start = 0
    with tqdm(unit="example", disable=not progress) as bar:
        for batch in batches:
            args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            out = explain_arrays(args, key, start, bar)
            start += jax.tree.leaves(out)[0].shape[0]
            yield out


def _axes(in_axes: int | None | Sequence[int | None], n_args: int) -> tuple[int | None, ...]:
    axes: tuple[Any, ...] = tuple(in_axes) if isinstance(in_axes, list | tuple) else (in_axes,) * n_args
    axes = tuple(int(axis) if isinstance(axis, np.integer) else axis for axis in axes)
    is_axis = [axis is None or (type(axis) is int and axis == 0) for axis in axes]
    if len(axes) != n_args or not all(is_axis) or 0 not in axes:
        raise SettingError(
            explain_error(
                "batched: `in_axes` must give 0 or None for each argument, and 0 at least once.",
                got=f"{in_axes} for {n_args} argument(s)",
            )
        )
    return axes


def _merge(mapped: list, shared: list, axes: tuple[int | None, ...]) -> list:
    parts = {0: iter(mapped), None: iter(shared)}
    return [next(parts[axis]) for axis in axes]


def _leading_axis(mapped: list) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(mapped)}
    if len(lengths) != 1 or lengths == {()}:
        raise StructureError(
            explain_error(
                "batched: mapped arguments need the same leading axis.",
                got=f"leading axes {sorted(map(list, lengths))}",
                fix=(
                    "one entry of each argument per example: explain(xs, labels), not explain(x, label)",
                    "an array instead of a list, in which every number is a leaf: jnp.asarray(labels)",
                    "arguments that are the same for all examples: in_axes=(0, None, …)",
                ),
            )
        )
    return lengths.pop()[0]


def _rows(tree: PyTree, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _total(args: Args, in_axes: int | None | Sequence[int | None]) -> int:
    return _leading_axis([a for a, axis in zip(args, _axes(in_axes, len(args)), strict=True) if axis == 0])


def _place(chunk: list, shared: list, indices: np.ndarray, devices: Sequence[jax.Device] | None) -> tuple:
    rows = jnp.asarray(indices, jnp.int32)
    if devices is None:
        return chunk, shared, rows
    mesh = jax.sharding.Mesh(np.asarray(devices), ("examples",))
    split, everywhere = (jax.NamedSharding(mesh, spec) for spec in (jax.P("examples"), jax.P()))
    return jax.device_put(chunk, split), jax.device_put(shared, everywhere), jax.device_put(rows, split)


def _collect(
    ready: PyTree, rows: np.ndarray, on_nan: str, explain: Explain, mapped: list, bar: tqdm, start: int
) -> PyTree:
    """A finished chunk on the host, without its padding, and with NaN raised or marked."""
    host = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rows)], ready)
    bar.update(len(rows))
    if on_nan == "keep":
        return host
    attribution = host[0] if isinstance(explain, with_info) else host
    bad = np.zeros(len(rows), bool)
    for leaf in jax.tree.leaves(attribution):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad |= (~np.isfinite(leaf)).reshape(len(rows), -1).any(axis=1)
    if not bad.any():
        return host
    if on_nan == "raise":
        raise NonFiniteError(_nan_message(rows[bad], mapped, start))

    def mark(leaf: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return np.where(bad.reshape((-1,) + (1,) * (leaf.ndim - 1)), np.asarray(np.nan, leaf.dtype), leaf)

    marked = jax.tree.map(mark, attribution)
    return (marked, host[1]) if attribution is not host else marked


def _nan_message(rows: np.ndarray, mapped: list, start: int) -> str:
    shown = ", ".join(map(str, (rows + start)[:10])) + (", …" if len(rows) > 10 else "")
    scalars = [arg for arg in mapped[1:] if jnp.ndim(arg) == 1]
    labels = f"; their scalar arguments: {[np.asarray(a)[rows[:10]].tolist() for a in scalars]}" if scalars else ""
    return explain_error(
        f"batched: the attribution contains NaN or infinity for {len(rows)} example(s) of a chunk.",
        where=f"example(s) {shown}{labels}",
        why=f"{WHY_NOT_FINITE}; a label out of range and a missing root give NaN",
        fix=(
            "without batched, explain(x, …) of one such example names the line",
            *SAFE_FORMULAS,
            'to continue, on_nan="mark", or "keep" to leave the numbers unchanged',
        ),
    )
