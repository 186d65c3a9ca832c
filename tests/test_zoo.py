"""The demo networks: accurate, pure, plain data, trainable again."""

import dataclasses
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import SettingError, zoo
from jaxplain.datasets import mnist
from jaxplain.zoo import _network
from jaxplain.zoo._network import RECIPES

DIGITS = mnist()
NO_BIAS = ("mlp_no_bias", "cnn_avgpool")
NAMES = zoo.NAMES + zoo.SCENE_NAMES
every_network = pytest.mark.parametrize("name", NAMES)


def some_networks(start: int) -> pytest.MarkDecorator:
    """Every third network, and all with --full: three tests share all networks."""
    return pytest.mark.rows("name", NAMES, NAMES[start::3])


held_out = cache(zoo.held_out)


def few(name: str) -> jax.Array:
    return jnp.asarray(held_out(name)[0][:4])


def test_every_network_is_of_digits_or_of_scenes() -> None:
    assert sorted(NAMES) == sorted(RECIPES)
    assert {held_out(name)[0].shape for name in zoo.NAMES} == {(1000, 28, 28, 1)}
    assert {held_out(name)[0].shape for name in zoo.SCENE_NAMES} == {(2000, 40, 40, 1)}


@every_network
def test_accuracy_on_the_held_out_examples(name: str) -> None:
    assert zoo.accuracy(zoo.load(name), *held_out(name)) >= RECIPES[name].accuracy


@every_network
def test_weights_are_finite_float32_jax_arrays_in_plain_dicts(name: str) -> None:
    params = zoo.load(name).params
    assert type(params) is dict
    assert all(type(layer) is dict for layer in params.values())
    leaves = jax.tree.leaves(params)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) <= 400_000


@some_networks(0)
def test_a_network_is_its_pure_function(name: str) -> None:
    net, x = zoo.load(name), few(name)
    logits = net(x)
    assert (logits.shape, logits.dtype) == ((4, 10), jnp.float32)
    assert np.array_equal(logits, net.apply(net.params, x))
    assert np.array_equal(logits, net(np.asarray(x)))
    assert zoo.load(name).apply is net.apply
    np.testing.assert_allclose(jax.jit(net.apply)(net.params, x), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(net)(x), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(net(x[0]), logits[0], rtol=1e-4, atol=1e-4)
    jax.make_jaxpr(net)(x)


@some_networks(1)
def test_gradients_have_the_shape_of_the_parameters(name: str) -> None:
    net, x = zoo.load(name), few(name)
    grads = jax.jit(jax.grad(lambda params: net.apply(params, x).sum()))(net.params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, net.params)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))


@some_networks(2)
def test_float64_is_float64_all_the_way(name: str) -> None:
    net = zoo.load(name)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), net.params)
        x = jnp.asarray(few(name), jnp.float64)
        apply = jax.jit(net.apply)
        logits = apply(params, x)
        assert logits.dtype == jnp.float64
        assert "f32[" not in str(jax.make_jaxpr(net.apply)(params, x))
        # A change that float32, anywhere inside, would round away.
        change = np.abs(apply(params, x * (1 + 1e-10)) - logits)
        assert np.all(change > 0)
        assert np.all(change < 1e-6)
    np.testing.assert_allclose(logits, jax.jit(net)(few(name)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NO_BIAS)
def test_without_biases_networks_are_positively_homogeneous(name: str) -> None:
    net, x = zoo.load(name), few(name)
    assert not any("bias" in layer for layer in net.params.values())
    # Powers of two leave no rounding: equal to the last bit.
    assert np.array_equal(net(2 * x), 2 * net(x))
    assert not np.any(net(jnp.zeros_like(x)))


@pytest.mark.parametrize(("name", "size"), [("gap", 7), ("gap_cluttered", 10)])
def test_class_activation_maps_of_gap_networks_average_to_the_logits(name: str, size: int) -> None:
    net, x = zoo.load(name), few(name)
    *convs, dense = net.params.values()
    assert list(dense) == ["kernel"]
    maps = x  # those of the last convolution, computed here layer by layer
    for depth, conv in enumerate(convs):
        maps = jax.lax.conv_general_dilated(
            maps, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        maps = jax.nn.relu(maps + conv["bias"][None, None, None])
        if depth < 2:
            n, height, width, channels = maps.shape
            maps = maps.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    assert maps.shape == (4, size, size, 128)
    class_maps = maps @ dense["kernel"]
    np.testing.assert_allclose(class_maps.mean((1, 2)), net(x), rtol=1e-4, atol=1e-4)


@some_networks(0)
def test_randomized_keeps_the_structure_and_forgets_the_weights(name: str) -> None:
    net = zoo.load(name)
    other = zoo.randomized(net, jax.random.key(1))
    assert (other.name, other.apply) == (name, net.apply)
    shape = lambda leaf: (leaf.shape, leaf.dtype)
    assert jax.tree.map(shape, other.params) == jax.tree.map(shape, net.params)
    for layer, values in net.params.items():
        assert not np.allclose(values["kernel"], other.params[layer]["kernel"])
    again = zoo.randomized(net, jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, other.params, again.params))
    images, labels = held_out(name)
    assert np.mean(np.asarray(jax.jit(other)(images[:100])).argmax(-1) == labels[:100]) < 0.5


def test_randomized_keeps_dtypes() -> None:
    net = zoo.load("mlp")
    half = dataclasses.replace(net, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), net.params))
    assert zoo.randomized(half, jax.random.key(0)).params["dense1"]["kernel"].dtype == jnp.bfloat16


def test_training_is_quick_accurate_and_repeatable() -> None:
    trained = zoo.train("mlp", seed=3, epochs=3, progress=False)
    assert zoo.accuracy(trained, DIGITS.x_test, DIGITS.y_test) >= 0.92
    first, again = (zoo.train("mlp", seed=3, epochs=1, progress=False) for _ in range(2))
    other = zoo.train("mlp", seed=4, epochs=1, progress=False)
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, again.params))
    assert not np.array_equal(first.params["dense1"]["kernel"], other.params["dense1"]["kernel"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first.params))


@pytest.mark.rows("name", zoo.SCENE_NAMES, zoo.SCENE_NAMES[:1])
def test_training_on_scenes_is_repeatable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits = DIGITS._replace(x_train=DIGITS.x_train[:200], y_train=DIGITS.y_train[:200])
    monkeypatch.setattr(_network, "mnist", lambda: few_digits)
    first, again = (zoo.train(name, epochs=1, progress=False) for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, again.params))
    assert not np.array_equal(first.params["conv1"]["bias"], jnp.zeros(32))
    assert jax.tree.map(jnp.shape, first.params) == jax.tree.map(jnp.shape, zoo.load(name).params)


def test_saving_and_loading_gives_the_same_weights(tmp_path) -> None:
    net = zoo.load("all_conv")
    path = zoo.save(net, tmp_path)
    with np.load(path) as file:
        assert "conv1/kernel" in file.files
        assert np.array_equal(file["down2/bias"], net.params["down2"]["bias"])


def test_shift_moves_each_image_by_whole_pixels() -> None:
    images = jnp.zeros((200, 28, 28, 1), jnp.float32).at[:, 10, 12].set(1)
    moved = np.asarray(jax.jit(zoo.shift)(images, jax.random.key(0)))
    assert (moved.shape, moved.dtype) == (images.shape, np.float32)
    assert np.array_equal(moved.sum((1, 2, 3)), np.ones(200))
    _, rows, cols, _ = np.nonzero(moved)
    assert {*rows - 10} == {*cols - 12} == {-2, -1, 0, 1, 2}
    # Pixels pushed over the border are gone, and zeros come in.
    corner = jnp.zeros((50, 28, 28, 1), jnp.float32).at[:, 0, 0].set(1)
    sums = np.asarray(zoo.shift(corner, jax.random.key(1), max_shift=1)).sum((1, 2, 3))
    assert {*sums.tolist()} == {0.0, 1.0}


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    for attempt in (zoo.load, zoo.train, zoo.held_out):
        with pytest.raises(ValueError, match="(?s)'resnet'.*" + ", ".join(map(repr, NAMES))):
            attempt("resnet")


def test_the_command_refuses_unknown_names() -> None:
    done = subprocess.run([sys.executable, "-m", "jaxplain.zoo", "resnet"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no network 'resnet'" in done.stderr


def test_a_network_shows_its_name_and_size() -> None:
    assert repr(zoo.load("mlp")) == "Network('mlp', 269,322 parameters)"


def test_experts_know_digits(tmp_path):
    digits = np.round(DIGITS.x_test[:200])
    made, vae, rbm = map(zoo.load_expert, ("made", "vae", "rbm"))
    assert jax.vmap(made.log_prob)(digits).mean() > -80
    assert jax.vmap(vae.elbo)(digits, jax.random.split(jax.random.key(0), 200)).mean() > -95
    # Its log Z is estimated in chapter 1.2; that of a pair of images cancels.
    energies = jax.vmap(rbm.free_energy)
    assert (energies(digits) < energies(digits[:, ::-1])).mean() > 0.9
    zoo.save_expert("again", rbm, tmp_path)
    with np.load(tmp_path / "again.npz") as file:
        assert [file[name].shape for name in file.files] == [leaf.shape for leaf in jax.tree.leaves(rbm)]
    with pytest.raises(SettingError, match=r"no expert 'gan'(.|\n)*'rbm'"):
        zoo.load_expert("gan")
