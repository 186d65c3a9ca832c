"""Activation maximization: closed forms, each part on its own, transforms of JAX, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative
from scipy.ndimage import affine_transform, gaussian_filter

import jaxplain as jx
from jaxplain import datasets, prototypes, zoo

W = jax.random.normal(jax.random.key(0), (6,))
IMAGE = jax.random.normal(jax.random.key(1), (8, 11, 2))


def test_a_linear_score_with_l2_reaches_its_weights_over_the_strength():
    maximize = jx.activation_maximization(
        lambda x, y: y * (W @ x), penalties={"l2": prototypes.l2(0.25)}, optimizer=optax.sgd(1.0), n_steps=200
    )
    found = maximize(jnp.zeros(6), 2.0)
    assert relative(found.x, 2 * W / 0.25) < 1e-5
    assert relative(found.score, 4 * W @ W / 0.25) < 1e-5
    assert found.history.score.shape == found.history.penalties["l2"].shape == (200,)
    np.testing.assert_allclose(found.history.score[:1], 0)  # before the first step


def test_a_quadratic_reaches_its_optimum_and_centers_may_depend_on_the_class():
    a = jax.random.normal(jax.random.key(2), (6, 6))
    a = a @ a.T + jnp.eye(6)
    maximize = jx.activation_maximization(lambda x: -x @ a @ x / 2 + W @ x, optimizer=optax.adam(0.05), n_steps=3000)
    assert relative(maximize(jnp.zeros(6)).x, jnp.linalg.solve(a, W)) < 1e-5  # by adam, in pieces

    centers = jax.random.normal(jax.random.key(3), (3, 6))
    pull = jx.activation_maximization(
        lambda x, y: W @ x,
        penalties={"l2": prototypes.l2(0.5, center=lambda y: centers[y])},
        optimizer=optax.sgd(1.0),
        n_steps=100,
    )
    found = jax.vmap(pull, in_axes=(None, 0))(jnp.zeros(6), jnp.arange(3))
    assert relative(found.x, centers + W[None] / 0.5) < 1e-9
    in_pairs = optax.MultiSteps(optax.sgd(0.1), 2)
    after_two = jx.activation_maximization(lambda x: W @ x, optimizer=in_pairs, n_steps=2)(jnp.zeros(6))
    assert relative(after_two.x, 0.1 * W) < 1e-6  # one step, of the mean of two gradients, which optax keeps in float32
    by_line_search = jx.activation_maximization(lambda x: -x @ a @ x / 2 + W @ x, optimizer=optax.lbfgs(), n_steps=30)
    assert relative(by_line_search(jnp.zeros(6)).x, jnp.linalg.solve(a, W)) < 1e-9
    # Over strengths, too.
    strengths = jnp.array([0.5, 1.0, 2.0])
    sweep = jax.vmap(
        lambda s: jx.activation_maximization(
            lambda x: W @ x, penalties={"l2": prototypes.l2(s)}, optimizer=optax.sgd(0.4), n_steps=200
        )(jnp.zeros(6))
    )
    assert relative(sweep(strengths).x, W[None] / strengths[:, None]) < 1e-5


@pytest.mark.parametrize(
    ("written", "x"),
    [
        (prototypes.pixels(), IMAGE),
        (prototypes.box(-4, 5), IMAGE),
        (prototypes.fourier(IMAGE.shape), IMAGE),
        (prototypes.fourier((7, 9, 1), decay=0.5), IMAGE[:7, :9, :1]),
        (prototypes.box(-4, 5, of=prototypes.fourier(IMAGE.shape)), IMAGE),
        (prototypes.fixed_magnitude(IMAGE[None]), IMAGE),
        (prototypes.decoder(jnp.tanh), None),
    ],
)
def test_parametrizations_round_trip(written, x):
    if x is not None:
        assert relative(written.decode(written.encode(x)), x) < 1e-9
    z = jax.random.normal(jax.random.key(4), jax.eval_shape(written.encode, IMAGE if x is None else x).shape)
    slope = jax.grad(lambda z: jnp.sum(jnp.sin(written.decode(z))))(z)
    step = jax.random.normal(jax.random.key(5), z.shape)
    f = lambda t: jnp.sum(jnp.sin(written.decode(z + t * step)))
    np.testing.assert_allclose(jnp.vdot(slope, step), (f(1e-5) - f(-1e-5)) / 2e-5, rtol=1e-5)


def test_a_box_holds_and_fourier_steps_are_smooth():
    wild = jx.activation_maximization(
        lambda x: 100 * jnp.sum(W * x), parametrization=prototypes.box(0, 1), optimizer=optax.adam(0.5), n_steps=50
    )
    x = wild(jnp.full(6, 0.5)).x
    assert ((x > 0) & (x < 1)).all() and ((x > 0.9) == (W > 0)).all()
    score = lambda x: jnp.sum(IMAGE * x)
    rough, smooth = (
        jx.activation_maximization(score, parametrization=written, optimizer=optax.sgd(0.1), n_steps=3)(0 * IMAGE).x
        for written in (prototypes.pixels(), prototypes.fourier(IMAGE.shape))
    )
    roughness = lambda x: prototypes.total_variation(1.0)(x) / jnp.sum(x**2)
    assert roughness(smooth) < 0.5 * roughness(rough)
    held = prototypes.fixed_magnitude(jnp.stack([IMAGE, 2 * IMAGE]))
    found = jx.activation_maximization(score, parametrization=held, n_steps=5)(IMAGE)
    magnitude = lambda x: jnp.abs(jnp.fft.rfft2(x, axes=(0, 1)))
    np.testing.assert_allclose(magnitude(found.x), 1.5 * magnitude(IMAGE), rtol=1e-9)
    assert relative(found.x, held.decode(held.encode(IMAGE))) > 1e-3


def test_penalties_by_hand():
    x = np.asarray(IMAGE)
    assert relative(prototypes.l2(3.0, 1.0)(IMAGE), 1.5 * ((x - 1) ** 2).sum()) < 1e-12
    assert relative(prototypes.lp(2.0, 4)(IMAGE), 2 * (np.abs(x) ** 4).sum()) < 1e-12
    rough = ((x[1:] - x[:-1]) ** 2).sum() + ((x[:, 1:] - x[:, :-1]) ** 2).sum()
    assert relative(prototypes.total_variation(2.0)(IMAGE), 2 * rough) < 1e-12
    rows = x.reshape(8, -1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i in range(8) for j in range(8) if i != j]
    assert relative(prototypes.diversity(2.0)(IMAGE), 2 * np.mean(cosines)) < 1e-9
    blurred = np.stack([gaussian_filter(x[..., c], 1.0, mode="nearest", truncate=4) for c in range(2)], -1)
    assert relative(prototypes.blur(2.0, 1.0)(IMAGE), ((x - blurred) ** 2).sum()) < 1e-9
    assert abs(prototypes.blur(1.0, 2.0)(jnp.ones((5, 6, 1)))) < 1e-20
    assert relative(prototypes.expert(2.0, jnp.sum)(IMAGE, "label"), -2 * x.sum()) < 1e-12
    radius = np.linalg.norm(W)
    assert relative(prototypes.shell(3.0)(W), 3 * (radius**2 / 2 - 5 * np.log(radius))) < 1e-12
    tree = {"a": IMAGE, "b": W}
    assert relative(prototypes.l2(1.0)(tree), (jnp.sum(IMAGE**2) + W @ W) / 2) < 1e-12


def test_several_prototypes_are_kept_apart():
    score = lambda xs: jnp.sum(jnp.sum(jnp.abs(xs[:, :2]), -1) - jnp.sum(xs**2, -1) / 2)  # four optima each
    start = jnp.array([[1e-3, 2e-3], [2e-3, 1e-3]])
    alone, apart = (
        jx.activation_maximization(score, penalties=penalties, n_steps=400)(start).x
        for penalties in ({}, {"diversity": prototypes.diversity(3.0)})
    )
    cosine = lambda xs: xs[0] @ xs[1] / jnp.linalg.norm(xs[0]) / jnp.linalg.norm(xs[1])
    assert cosine(alone) > 0.99 and cosine(apart) < 0.5


def test_transforms_move_the_image():
    key = jax.random.key(0)
    spot = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    keys = jax.random.split(key, 200)
    moved = jax.vmap(lambda k: prototypes.jitter(2)(k, spot))(keys)
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = {divmod(int(p), 9) for p in jnp.argmax(moved.reshape(200, -1), -1)}
    assert places == {(r, c) for r in range(2, 7) for c in range(2, 7)}
    # A ramp turned or enlarged about its middle is a ramp again.
    rows = jnp.broadcast_to(jnp.arange(9.0)[:, None, None] - 4, (9, 9, 1))
    turned = prototypes.rotate(30)(key, rows)[2:7, 2:7, 0]
    slopes = jnp.array([turned[1, 0] - turned[0, 0], turned[0, 1] - turned[0, 0]])
    assert relative(jnp.linalg.norm(slopes), 1.0) < 1e-6 and abs(slopes[1]) > 1e-3 and abs(turned[2, 2]) < 1e-9
    angles = jax.vmap(lambda k: prototypes.rotate(30)(k, rows)[4, 5, 0])(keys)
    assert jnp.abs(angles).max() <= np.sin(np.pi / 6) and angles.min() < -0.3 and angles.max() > 0.3
    larger = prototypes.scale(2, 2)(key, rows)
    assert relative(larger[3:6], rows[3:6] / 2) < 1e-9
    # A window of half the ramp rises half as fast, and starts anywhere from the edge to the middle.
    windows = jax.vmap(lambda k: prototypes.crop(0.5)(k, rows)[..., 0, 0])(keys)
    assert relative(windows[:, 2:7] - windows[:, 1:6], jnp.full((200, 5), 0.5)) < 1e-9
    assert -2.25 <= windows[:, 4].min() < -2 and 2 < windows[:, 4].max() <= 2.25
    noisy = prototypes.noise(0.1)(key, {"x": jnp.zeros(10_000)})["x"]
    assert relative(jnp.std(noisy), 0.1) < 0.05
    shakes = [
        prototypes.jitter(2),
        prototypes.rotate(30),
        prototypes.scale(0.8, 1.2),
        prototypes.crop(0.8),
        prototypes.noise(0.1),
    ]
    slopes = jax.jit(lambda x: [jax.grad(lambda x, t=t: jnp.sum(jnp.sin(t(key, x))))(x) for t in shakes])(IMAGE)
    for g in slopes:
        assert jnp.isfinite(g).all() and jnp.abs(g).sum() > 0


def test_a_digit_of_a_network_is_reproducible_under_jit_and_vmap_and_watched():
    score, other = jx.logit(zoo.load("mlp")), jx.logit(zoo.load("mlp_no_bias"), of="prob")
    maximize = jx.activation_maximization(
        score,
        penalties={"l2": prototypes.l2(0.05), "tv": prototypes.total_variation(0.01)},
        parametrization=prototypes.box(0, 1, of=prototypes.fourier((28, 28, 1))),
        transforms=(prototypes.jitter(1), prototypes.noise(0.05)),
        n_steps=12,
        watch={"other": other},
    )
    start = jnp.full((28, 28, 1), 0.1)
    plain = maximize(start, 3, key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2).at[1].set(jax.random.key(0))
    many = jax.jit(jax.vmap(maximize, in_axes=(None, None)))(start, 3, key=keys)
    assert relative(many.x[1], plain.x) < 1e-9
    assert relative(many.x[0], plain.x) > 1e-6
    assert plain.history.score[-1] > plain.history.score[0] + 1
    assert relative(plain.score, score(plain.x, 3)) < 1e-9
    assert relative(plain.history.watched["other"][0], other(start, 3)) < 1e-3  # the start, 1e-4 from the edges


def test_units_of_hidden_layers_and_decoders():
    x = datasets.mnist().x_test[0]
    encode, _ = jx.split(jx.logit(zoo.load("gap")), "last conv")
    channel = lambda x: jnp.mean(encode(x, 0)[..., 7])
    found = jx.activation_maximization(channel, parametrization=prototypes.box(), n_steps=10)(x)
    assert found.score > channel(x)
    matrix = jax.random.normal(jax.random.key(0), (6, 3))
    G = lambda z: matrix @ z
    code = jx.activation_maximization(
        lambda x: W @ x,
        parametrization=prototypes.decoder(G),
        penalties={"l2": prototypes.l2(1.0)},
        optimizer=optax.sgd(0.1),
        n_steps=2000,
    )(jnp.zeros(3))
    # The nearest to W that the decoder can make.
    assert code.parameters.shape == (3,) and relative(code.x, matrix @ jnp.linalg.lstsq(matrix, W)[0]) < 1e-5


def test_a_long_run_shows_a_bar_and_a_short_one_does_not(capsys):
    run = lambda n: jx.activation_maximization(lambda x: -jnp.sum(x**2), n_steps=n)(jnp.ones(2))
    run(20)
    assert capsys.readouterr().err == ""
    assert run(1001).history.score.shape == (1001,)
    assert "1001" in capsys.readouterr().err


def test_refusals():
    x = jnp.ones(3)
    dense = lambda x: jnp.sum(x @ jnp.ones((3, 2)))
    with pytest.raises(
        jx.StructureError, match=r"the score failed on x.*\n(.|\n)*x of shape \(4,\)(.|\n)*\(4,\) and \(3,\)"
    ):
        jx.activation_maximization(dense, parametrization=prototypes.decoder(lambda z: jnp.ones((4, 5)) @ z))(
            jnp.ones(5)
        )
    with pytest.raises(jx.StructureError, match=r"parametrization failed on the start.*\n(.|\n)*start of shape \(3,\)"):
        jx.activation_maximization(dense, parametrization=prototypes.decoder(lambda z: jnp.ones((4, 5)) @ z))(x)
    log = jx.activation_maximization(
        lambda x: jnp.sum(jnp.log(x)) - 10 * jnp.sum(x), optimizer=optax.sgd(1.0), n_steps=9
    )
    with pytest.raises(jx.NonFiniteError, match=r"step 1\n(.|\n)*the score is"):
        log(x)
    assert np.isnan(jax.jit(log)(x).history.score[-1])
    many = jax.vmap(log)(jnp.stack([x / 10, x]))  # the first starts at its optimum
    with pytest.raises(jx.NonFiniteError, match=r"step 1 of run \(1,\)\n(.|\n)*the score is"):
        many.require_finite()
    assert jax.tree.map(lambda leaf: leaf[0], many).require_finite().score.shape == ()
    broken = {"prior": lambda x: jnp.sum(jnp.sqrt(x - 1.5))}
    with pytest.raises(jx.NonFiniteError, match=r"step 0\n(.|\n)*penalty 'prior'(.|\n)*another start"):
        jx.activation_maximization(jnp.sum, penalties=broken)(x)
    with pytest.raises(jx.MissingKeyError, match="needs a random key"):
        jx.activation_maximization(jnp.sum, transforms=(prototypes.noise(0.1),))(x)
    with pytest.raises(jx.ScoreError, match="one number"):
        jx.activation_maximization(lambda x: x)(x)
    with pytest.raises(jx.ScoreError, match=r"penalties\['area'\] must return one real number"):
        jx.activation_maximization(jnp.sum, penalties={"area": lambda x: x})(x)
    with pytest.raises(jx.SettingError, match=r"penalties\['l2'\]"):
        jx.activation_maximization(jnp.sum, penalties={"l2": 0.1})
    with pytest.raises(jx.SettingError, match="dictionary"):
        jx.activation_maximization(jnp.sum, penalties=[prototypes.l2(0.1)])
    with pytest.raises(jx.SettingError, match="the same name"):
        jx.activation_maximization(jnp.sum, penalties={"l2": jnp.sum}, code_penalties={"l2": jnp.sum})
    with pytest.raises(jx.SettingError, match="n_steps"):
        jx.activation_maximization(jnp.sum, n_steps=0)
    with pytest.raises(jx.ModelModeError, match="draws random numbers"):
        jx.activation_maximization(lambda x: jnp.sum(x * jax.random.normal(jax.random.key(0), x.shape)))(x)
    with pytest.raises(jx.StructureError, match=r"\(8, 11, 3\)"):
        jx.activation_maximization(jnp.sum, parametrization=prototypes.fourier((8, 11, 3)))(IMAGE)
    with pytest.raises(jx.StructureError, match=r"transforms\[1\](.|\n)*\[2\](.|\n)*\[3\]"):
        jx.activation_maximization(jnp.sum, transforms=(lambda k, x: x, lambda k, x: x[:2]))(x, key=jax.random.key(0))
    with pytest.raises(jx.MissingKeyError, match="one random key"):
        jx.activation_maximization(jnp.sum, transforms=(prototypes.noise(0.1),))(x, key=3)
    with pytest.raises(jx.InputError, match=r"start\['mask'\](.|\n)*int32"):
        jx.activation_maximization(lambda x: x["a"].sum())({"a": x, "mask": jnp.ones(3, "int32")})
    with pytest.raises(jx.TransformError, match="while loop"):
        jx.activation_maximization(lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v * 2, jnp.sum(x)))(x)
    loop = {"loop": lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v * 2, jnp.sum(x))}
    with pytest.raises(jx.TransformError, match="while loop"):
        jx.activation_maximization(jnp.sum, penalties=loop)(x)
    assert (jx.activation_maximization(jnp.sum, watch=loop, n_steps=2)(x).history.watched["loop"] >= 9).all()
    with pytest.raises(jx.TransformError, match="not known yet"):
        jax.jit(lambda x: jx.activation_maximization(jnp.sum, n_steps=1)(x).require_finite())(x)
    center = prototypes.l2(1.0, jnp.zeros((3, 6)))
    with pytest.raises(jx.StructureError, match=r"\(3, 6\)(.|\n)*\(6,\)(.|\n)*means\[label\]"):
        center(jnp.ones(6))


def test_what_breaks_in_the_last_step_is_found():
    at_the_edge = jx.activation_maximization(lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), n_steps=1)
    with pytest.raises(jx.NonFiniteError, match=r"step 0\n(.|\n)*a gradient is not"):
        at_the_edge(jnp.zeros(3))
    with pytest.raises(jx.NonFiniteError, match="a gradient is not"):
        jax.jit(at_the_edge)(jnp.zeros(3)).require_finite()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jx.activation_maximization(jnp.sum, transforms=prototypes.noise(0.1)), "sequence of functions"),
        (lambda: jx.activation_maximization(jnp.sum, transforms=[1]), r"transforms\[0\]"),
        (lambda: jx.activation_maximization(jnp.sum, optimizer=0.1), "one of optax"),
        (lambda: jx.activation_maximization(jnp.sum, parametrization=prototypes.pixels), "be a Parametrization"),
        (lambda: prototypes.box(1, 0), "low=1, high=0"),
        (lambda: prototypes.lp(1.0, 0.5), "at least 1"),
        (lambda: prototypes.fourier((8, 11)), r"\(height, width, channels\)(.|\n)*x\[..., None\]"),
        (lambda: prototypes.fourier((8, 11, 2), covariance=jnp.eye(3)), r"\(2, 2\)"),
        (lambda: prototypes.fourier((8, 11, 2), covariance=jnp.ones((2, 2))), "positive definite"),
        (lambda: prototypes.fixed_magnitude(jnp.ones((0, 8, 8, 1))), "is empty"),
        (lambda: prototypes.total_variation(1.0)(jnp.ones(3)), r"total_variation: images are \(height"),
        (lambda: prototypes.blur(1.0, 0), "positive, in pixels"),
        (lambda: prototypes.blur(1.0)(jnp.ones(3)), r"blur: images are \(height"),
        (lambda: prototypes.scale(1.2, 0.8), "low=1.2, high=0.8"),
        (lambda: prototypes.rotate(-1), "not be negative"),
        (lambda: prototypes.noise(-1), "not be negative"),
        (lambda: prototypes.jitter(0), "positive integer"),
        (lambda: prototypes.crop(0), r"\(0, 1\]"),
        (lambda: prototypes.crop(0.5)(jax.random.key(0), jnp.ones(3)), r"crop: images are \(height"),
        (lambda: prototypes.jitter(1)(jax.random.key(0), jnp.ones(3)), r"jitter: images are \(height"),
        (lambda: prototypes.diversity(1.0)(jnp.ones((1, 3))), "two prototypes or more"),
    ],
)
def test_settings_that_are_refused(make, message):
    with pytest.raises(jx.JaxplainError, match=message):
        make()


def test_code_penalties_pull_the_code():
    # G(z) = 2z, so the score is 2 W·z and the code ends at 2 W / λ.
    found = jx.activation_maximization(
        lambda x: W @ x,
        parametrization=prototypes.decoder(lambda z: 2 * z),
        code_penalties={"prior": prototypes.l2(4.0)},
        optimizer=optax.sgd(0.2),
        n_steps=100,
    )(jnp.zeros(6))
    assert relative(found.parameters, W / 2) < 1e-9 and relative(found.x, W) < 1e-9
    assert relative(found.history.objective, found.history.score - found.history.penalties["prior"]) < 1e-12


def test_transforms_are_drawn_anew_applied_in_order_and_not_seen_by_penalties():
    seen = lambda x: jnp.sum(x)  # the score is what the transforms left of zeros
    add = lambda key, x: x + jax.random.normal(key, x.shape)
    double = lambda key, x: 2 * x
    still = optax.sgd(0.0)
    run = lambda transforms, n=4: jx.activation_maximization(
        seen, transforms=transforms, penalties={"sum": jnp.sum}, optimizer=still, n_steps=n
    )(jnp.zeros(3), key=jax.random.key(0))
    once, first, last = run([add]), run((add, double)), run(iter([double, add]))
    assert len(set(once.history.score.tolist())) == 4
    assert relative(first.history.score, 2 * once.history.score) < 1e-12  # added, then doubled
    assert relative(last.history.score, first.history.score) > 0.1
    assert (once.history.penalties["sum"] == 0).all() and once.score == 0
    both = run((add, add)).history.score  # each with a key of its own
    assert relative(both, 2 * once.history.score) > 0.1
    # A long run, in pieces, draws what a compiled one draws.
    long = run((add,), 1001).history.score
    compiled = jax.jit(lambda: run((add,), 1001).history.score)()
    assert len(set(long.tolist())) == 1001 and relative(long, compiled) < 1e-12


def test_what_is_traced_may_be_anything():
    run = lambda rate: jx.activation_maximization(lambda x: W @ x, optimizer=optax.sgd(rate), n_steps=3)(jnp.zeros(6)).x
    rates = jnp.array([0.1, 0.2])
    assert relative(jax.vmap(run)(rates), 3 * rates[:, None] * W[None]) < 1e-12
    assert relative(jax.jacfwd(run)(0.1), 3 * W) < 1e-12
    assert relative(jax.jit(lambda: run(0.1))(), 0.3 * W) < 1e-12
    watched = lambda s: (
        jx.activation_maximization(
            lambda x: W @ x - s * x @ x, watch={"w": lambda x: W @ x, "positive": lambda x: x[0] > 0}, n_steps=3
        )(jnp.ones(6)).history.watched
    )
    assert watched(1.0)["positive"].dtype == bool and jax.grad(lambda s: watched(s)["w"][-1])(0.3) != 0


def test_low_precision_is_the_networks_alone():
    start = jnp.full(3, 8.0, jnp.bfloat16)
    dtypes = set()
    score = lambda x: dtypes.add(x.dtype) or -jnp.sum((x - 20) ** 2)
    far = jx.activation_maximization(score, optimizer=optax.adam(0.02), n_steps=400)(start)
    assert dtypes == {jnp.dtype("bfloat16")} and far.x.dtype == jnp.bfloat16 and far.parameters.dtype == jnp.float32
    assert (far.x > 12).all()


def test_the_metric_of_fourier_is_that_of_its_frequencies():
    square = jax.random.normal(jax.random.key(7), (8, 8, 2))
    score = lambda x: jnp.sum(square * x)

    def step(written, score=score):
        return jx.activation_maximization(score, parametrization=written, optimizer=optax.sgd(0.1), n_steps=1)(
            0 * square
        ).x

    assert relative(step(prototypes.fourier((8, 8, 2), decay=0)), step(prototypes.pixels())) < 1e-9
    turned = step(prototypes.fourier((8, 8, 2)), lambda x: score(jnp.swapaxes(x, 0, 1)))
    assert relative(jnp.swapaxes(turned, 0, 1), step(prototypes.fourier((8, 8, 2)))) < 1e-9
    # With a covariance, a step has the colors of it: C g.
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    colored = prototypes.fourier((8, 8, 2), decay=0, covariance=covariance)
    assert relative(step(colored), 0.1 * square @ covariance) < 1e-9
    assert relative(colored.decode(colored.encode(square)), square) < 1e-9


def test_moves_of_an_image_that_is_not_square_are_those_of_scipy():
    image = np.asarray(jax.random.normal(jax.random.key(8), (9, 14, 3)))
    middle = np.array([4.0, 6.5])
    for seed in range(3):
        key = jax.random.key(seed)
        angle = np.deg2rad(float(jax.random.uniform(key, minval=-30, maxval=30)))
        factor = float(jax.random.uniform(key, minval=0.7, maxval=1.4))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for transform, matrix in ((prototypes.rotate(30), turn), (prototypes.scale(0.7, 1.4), np.eye(2) / factor)):
            want = [
                affine_transform(image[..., c], matrix, middle - matrix @ middle, order=1, mode="nearest")
                for c in range(3)
            ]
            assert relative(transform(key, jnp.asarray(image)), np.stack(want, -1)) < 1e-9
    # Ramps: a window of half the image begins anywhere along either axis, and rises half as fast.
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(9.0), jnp.arange(14.0), indexing="ij"), -1)
    corners = jax.vmap(lambda k: prototypes.crop(0.5)(k, ramp)[0, 0])(jax.random.split(jax.random.key(0), 300))
    low, high = corners.min(0), corners.max(0)
    assert (low >= jnp.array([-0.25, 0]) - 1e-9).all() and (low < jnp.array([0.2, 0.3])).all()
    assert (high <= jnp.array([4.25, 6.75])).all() and (high > jnp.array([4.0, 6.4])).all()
    assert jnp.abs(jnp.corrcoef(corners.T)[0, 1]) < 0.2
    noisy = prototypes.noise(1.0)(jax.random.key(0), {"a": jnp.zeros(9), "b": jnp.zeros(9)})
    assert relative(noisy["a"], noisy["b"]) > 0.1
    assert prototypes.rotate(9)(key, jnp.ones((4, 4, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def test_boxes_of_channels_and_of_decoders():
    low, high = jnp.array([0.0, -2.0]), jnp.array([1.0, 5.0])
    x = low[None, None] + (high - low)[None, None] * jax.random.uniform(jax.random.key(0), (4, 5, 2))
    box = prototypes.box(low, high)
    assert relative(box.decode(box.encode(x)), x) < 1e-9
    made = prototypes.box(0, 1, of=prototypes.decoder(lambda z: 3 * z))
    z = jnp.array([2.0, -2.0])
    assert made.of_code and relative(made.decode(made.encode(z)), jax.nn.sigmoid(3 * z)) < 1e-12


def test_a_blank_pixel_costs_nothing_and_trees_are_compared_whole():
    assert (jax.grad(prototypes.lp(0.1, 1))(jnp.array([0.0, 2.0, -2.0])) == jnp.array([0, 0.1, -0.1])).all()
    pair = {"a": jnp.eye(2), "b": jnp.eye(2)}
    assert abs(prototypes.diversity(1.0)(pair)) < 1e-9
