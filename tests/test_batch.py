"""`batched`: chunks, ragged ends, keys, iterators, devices, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import promoting, relative, text

import jaxplain as jx

W = jax.random.normal(jax.random.key(0), (6, 4))
SCORE = jx.logit(lambda x: jnp.tanh(x @ W))
XS = jax.random.normal(jax.random.key(1), (11, 6))
YS = jnp.arange(11) % 4
quiet = dict(progress=False)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_equals_vmap_for_every_batch_size(batch_size):
    want = jax.vmap(jx.gradient(SCORE))(XS, YS)
    got = jx.batched(jx.gradient(SCORE), batch_size=batch_size, **quiet)(XS, YS)
    assert isinstance(got, np.ndarray)
    assert relative(got, want) < 1e-12


@pytest.mark.parametrize("devices", [None, 2, 4])
def test_draws_do_not_depend_on_batches_or_devices(key, devices):
    explain = jx.smoothgrad(jx.gradient(SCORE), n_samples=3)
    want = jx.batched(explain, batch_size=11, **quiet)(XS, YS, key=key)
    chosen = None if devices is None else jax.devices()[:devices]
    got = jx.batched(explain, batch_size=4, devices=chosen, **quiet)(XS, YS, key=key)
    assert relative(got, want) < 1e-12
    assert relative(got[3], explain(XS[3], YS[3], key=jax.random.fold_in(key, 3))) < 1e-12


def test_one_trace_for_ragged_batches_and_for_later_calls():
    traces = []

    def score(x, y):
        traces.append(0)
        return SCORE(x, y)

    run = jx.batched(jx.integrated_gradients(score), batch_size=4, **quiet)
    run(XS, YS)
    run(XS[:5], YS[:5])
    assert len(traces) == 1


def test_with_info_and_pytrees():
    f = lambda x: jnp.sum(x["a"] ** 2) + jnp.sum(x["b"])
    xs = {"a": XS, "b": XS[:, :2]}
    maps, info = jx.batched(jx.with_info(jx.integrated_gradients(f)), batch_size=4, **quiet)(xs)
    assert relative(maps["a"], XS**2) < 1e-12
    assert info.gap.shape == (11,) and info.converged is None


def test_weights_closed_over_are_those_of_the_first_call_and_arguments_are_not():
    from flax import nnx

    net = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    run = jx.batched(jx.gradient(jx.logit(promoting()(lambda x: net(x)))), **quiet)
    before = run(XS, YS)
    net.kernel[...] = 10 * net.kernel[...]
    assert relative(run(XS, YS), before) == 0
    assert (
        relative(jx.batched(jx.gradient(jx.logit(promoting()(lambda x: net(x)))), **quiet)(XS, YS), 10 * before) < 1e-6
    )
    graph, state = nnx.split(net)
    score = lambda x, y, state: jx.logit(promoting()(lambda x: nnx.merge(graph, state)(x)))(x, y)
    passed = jx.batched(jx.gradient(score), in_axes=(0, 0, None), **quiet)
    assert relative(passed(XS, YS, state), 10 * before) < 1e-6
    assert relative(passed(XS, YS, jax.tree.map(lambda w: w / 10, state)), before) < 1e-6


def test_a_key_for_the_run_overrides_the_explainers_own(key):
    explain = jx.smoothgrad(jx.gradient(SCORE), n_samples=3, key=key)
    own, other = (jx.batched(explain, **quiet)(XS, YS, key=k) for k in (None, jax.random.key(9)))
    assert relative(own, other) > 1e-6
    assert relative(other[2], explain(XS[2], YS[2], key=jax.random.fold_in(jax.random.key(9), 2))) < 1e-12


def test_shared_arguments():
    score = lambda x, w, y: jnp.tanh(x @ w)[y]
    got = jx.batched(jx.gradient(score), batch_size=4, in_axes=(0, None, 0), **quiet)(XS, W, YS)
    assert relative(got, jax.vmap(jx.gradient(SCORE))(XS, YS)) < 1e-12


def test_an_iterator_of_batches_is_streamed(key):
    explain = jx.smoothgrad(jx.gradient(SCORE), n_samples=3)
    parts = jx.batched(explain, batch_size=4, **quiet)(iter([[XS[:6], YS[:6]], (XS[6:], YS[6:])]), key=key)
    assert not isinstance(parts, list)
    got = np.concatenate(list(parts))
    assert relative(got, jx.batched(explain, **quiet)(XS, YS, key=key)) < 1e-12


def test_an_empty_batch_has_an_empty_result(key):
    explain = jx.with_info(jx.smoothgrad(jx.gradient(SCORE), n_samples=3))
    run = jx.batched(explain, batch_size=4, **quiet)
    parts = list(run(iter([(XS[:0], YS[:0]), (XS[:6], YS[:6]), (XS[6:6], YS[6:6]), (XS[6:], YS[6:])]), key=key))
    assert [len(maps) for maps, _ in parts] == [0, 6, 0, 5] and parts[0][1].n_gradients.shape == (0,)
    want, _ = run(XS, YS, key=key)
    assert parts[0][0].dtype == want.dtype and relative(np.concatenate([maps for maps, _ in parts]), want) < 1e-12
    assert run(np.asarray(XS[:0]), YS[:0], key=key)[0].shape == (0, 6)


def test_nan_is_reported_by_example_or_marked():
    labels = YS.at[7].set(9)
    run = jx.batched(jx.gradient(SCORE), batch_size=4, **quiet)
    with pytest.raises(jx.NonFiniteError) as error:
        run(XS, labels)
    assert "example(s) 7" in text(error) and "[9]" in text(error) and 'on_nan="mark"' in text(error)
    with pytest.raises(jx.NonFiniteError, match=r"example\(s\) 7"):
        list(run(iter([(XS[:6], labels[:6]), (XS[6:], labels[6:])])))
    marked = jx.batched(jx.gradient(SCORE), batch_size=4, on_nan="mark", **quiet)(XS, labels)
    assert np.isnan(marked[7]).all() and np.isfinite(np.delete(marked, 7, 0)).all()


def test_one_nan_pixel_marks_the_whole_example():
    f = lambda x: jnp.sum(jnp.sqrt(x))
    maps = jx.batched(jx.gradient(f), on_nan="mark", **quiet)(jnp.array([[1.0, -1.0], [1.0, 4.0]]))
    assert np.isnan(maps[0]).all() and np.isfinite(maps[1]).all()
    with pytest.raises(jx.NonFiniteError, match=r"example\(s\) 0"):
        jx.batched(jx.gradient(f), **quiet)(jnp.array([[0.0, 1.0], [1.0, 4.0]]))  # an infinite slope
    kept = jx.batched(jx.gradient(f), on_nan="keep", **quiet)(jnp.array([[1.0, -1.0], [1.0, 4.0]]))
    assert np.isnan(kept).tolist() == [[False, True], [False, False]]


def test_progress_bar(capsys):
    jx.batched(jx.gradient(SCORE), batch_size=4)(XS, YS)
    assert "11/11" in capsys.readouterr().err


def test_errors(key):
    with pytest.raises(jx.MissingKeyError, match="random key"):
        jx.batched(jx.smoothgrad(jx.gradient(SCORE)), **quiet)(XS, YS)
    with pytest.raises(jx.MissingKeyError, match="one random key"):
        jx.batched(jx.smoothgrad(jx.gradient(SCORE)), **quiet)(XS, YS, key=jax.random.split(key, 11))
    with pytest.raises(jx.MissingKeyError, match="plain function"):
        jx.batched(lambda x, y: x, **quiet)(XS, YS, key=key)
    with pytest.raises(jx.StructureError, match="same leading axis"):
        jx.batched(jx.gradient(SCORE), **quiet)(XS, YS[:5])
    with pytest.raises(jx.StructureError, match=r"jnp.asarray\(labels\)"):
        jx.batched(jx.gradient(SCORE), **quiet)(XS, YS.tolist())
    with pytest.raises(jx.SettingError, match="in_axes"):
        jx.batched(jx.gradient(SCORE), in_axes=(0, 1), **quiet)(XS, YS)
    with pytest.raises(jx.SettingError, match="multiple of the number of devices"):
        jx.batched(jx.gradient(SCORE), batch_size=3, devices=jax.devices()[:2])
    with pytest.raises(jx.SettingError, match="on_nan"):
        jx.batched(jx.gradient(SCORE), on_nan="ignore")
