"""Flipping metrics: loops in NumPy, closed forms, what replaces features, the controls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net, text

import jaxplain as jx

M = jx.metrics
N = 6
W = jax.random.normal(jax.random.key(0), (N,))
X = jax.random.normal(jax.random.key(1), (N,))
R = jax.random.normal(jax.random.key(2), (N,))
B = 0.3 * jax.random.normal(jax.random.key(3), (N,))
NET = jax.jit(relu_net(jax.random.key(4), (N, 12, 1), 0.3))
IMAGE = jax.random.normal(jax.random.key(5), (6, 6, 2))
HEAT = jax.random.normal(jax.random.key(6), (6, 6, 2))
IMAGE_NET = relu_net(jax.random.key(7), (72, 12, 1), 0.3)


@jax.jit
def of_image(x):
    return IMAGE_NET(x.ravel())


def flipped(f, x, groups, removal_order, counts, b):
    """By a loop: the score with the first n groups of the order replaced."""
    scores = []
    for n in counts:
        point = np.where(np.isin(groups, removal_order[:n]), b, x)
        scores.append(float(f(jnp.asarray(point))))
    return np.array(scores)


def trapezoid(scores, shares):
    return float(np.trapezoid(scores, shares) / shares[-1])


@pytest.mark.parametrize("order", ["most", "least"])
def test_the_curve_is_a_loop_over_removals(order):
    places = np.argsort(-R if order == "most" else R)
    want = flipped(NET, X, np.arange(N), places, range(N + 1), B)
    measure = M.pixel_flipping(NET, order=order, baseline=B, chunk_size=3)
    curve = jax.jit(measure.curve)(R, X)
    assert relative(curve.score, want) < 1e-12
    assert relative(curve.share, np.arange(N + 1) / N) < 1e-12
    assert relative(jax.jit(measure)(R, X), trapezoid(want, np.arange(N + 1) / N)) < 1e-12
    assert relative(curve.score[0], NET(X)) < 1e-12 and relative(curve.score[-1], NET(B)) < 1e-12


def test_groups_are_ranked_by_their_sums_and_steps_share_them_out():
    groups = np.array([4, 0, 4, 2, 2, 0])
    sums = {g: float(R[groups == g].sum()) for g in (0, 2, 4)}
    places = sorted(sums, key=lambda g: -sums[g])
    want = flipped(NET, X, groups, places, range(4), 0.0)
    curve = jax.jit(M.pixel_flipping(NET, groups=groups).curve)(R, X)
    assert relative(curve.score, want) < 1e-12
    # Two steps over 60 % of six features: none, 1.8 → 2, 3.6 → 4 of them.
    curve = jax.jit(M.pixel_flipping(NET, n_steps=2, until=0.6).curve)(R, X)
    assert relative(curve.score, flipped(NET, X, np.arange(N), np.argsort(-R), (0, 2, 4), 0.0)) < 1e-12
    assert relative(curve.share, np.array([0, 2, 4]) / 6) < 1e-12
    assert relative(curve.area, trapezoid(curve.score, curve.share)) < 1e-12


def test_ties_go_by_label():
    tied = jnp.array([1.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    want = flipped(NET, X, np.arange(N), [1, 3, 0, 2, 4, 5], range(N + 1), 0.0)
    assert relative(jax.jit(M.pixel_flipping(NET).curve)(tied, X).score, want) < 1e-12
    want = flipped(NET, X, np.arange(N), [0, 2, 4, 5, 1, 3], range(N + 1), 0.0)
    assert relative(jax.jit(M.pixel_flipping(NET, order="least").curve)(tied, X).score, want) < 1e-12


def test_on_a_linear_score_its_own_attribution_is_best_and_insertion_mirrors_deletion():
    f = lambda x: x @ W
    best = float(jax.jit(M.pixel_flipping(f))(W * X, X))
    assert best <= min(float(jax.jit(M.pixel_flipping(f))(r, X)) for r in (R, X, W, -W * X)) + 1e-12
    # Deletion of the most relevant first is the insertion of the least relevant first, read backwards.
    deletion = jax.jit(M.pixel_flipping(NET).curve)(R, X).score
    inserted = jax.jit(M.insertion(NET).curve)(-R, X).score
    assert relative(inserted[::-1], deletion) < 1e-12
    assert relative(inserted[0], NET(0 * X)) < 1e-12 and relative(inserted[-1], NET(X)) < 1e-12


def test_area_over_the_curve():
    groups = jx.patches(2, 3)
    scores = jax.jit(M.pixel_flipping(of_image, groups=groups, n_steps=4).curve)(HEAT, IMAGE).score
    got = jax.jit(M.region_perturbation(of_image, groups=groups, baseline=0.0, n_steps=4))(HEAT, IMAGE)
    assert relative(got, np.mean(scores[0] - np.asarray(scores))) < 1e-12


def test_irof_ranks_by_means_and_divides_by_the_score():
    groups = np.array([0, 0, 0, 0, 1, 2])
    relevance = jnp.array([1.0, 1, 1, 1, 3, 2])  # the sum of 0 is largest, its mean is least
    f = lambda x: jnp.exp(NET(x))
    scores = flipped(f, X, groups, [1, 2, 0], range(4), B)
    want = 1 - trapezoid(scores / scores[0], np.arange(4) / 3)
    assert relative(jax.jit(M.irof(f, groups=groups, baseline=B))(relevance, X), want) < 1e-12
    assert abs(jax.jit(M.irof(lambda x: 1.0 + 0 * x[0], groups=groups, baseline=B))(relevance, X)) < 1e-12
    assert np.isnan(jax.jit(M.irof(lambda x: -f(x), groups=groups, baseline=B))(relevance, X))


def test_recomputed_rankings_are_a_loop_over_explanations():
    explain = jax.jit(jx.input_x_gradient(NET))
    x, removed, scores = np.asarray(X), [], [float(NET(X))]
    for step in range(N):
        relevance = np.array(R if step == 0 else explain(jnp.asarray(x)))
        relevance[removed] = -np.inf
        removed.append(int(np.argmax(relevance)))
        x = np.where(np.isin(np.arange(N), removed), B, X)
        scores.append(float(NET(jnp.asarray(x))))
    measure = M.pixel_flipping(NET, baseline=B, recompute=jx.input_x_gradient(NET))
    assert relative(jax.jit(measure.curve)(R, X).score, np.array(scores)) < 1e-12
    in_two = M.pixel_flipping(NET, baseline=B, recompute=lambda x: R, n_steps=2)  # the same ranking again
    static = M.pixel_flipping(NET, baseline=B, n_steps=2)
    assert relative(jax.jit(in_two.curve)(R, X).score, jax.jit(static.curve)(R, X).score) < 1e-12
    stochastic = M.pixel_flipping(NET, recompute=jx.smoothgrad(jx.gradient(NET), n_samples=1, noise=3.0))
    one, again, other = (jax.jit(stochastic)(R, X, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert one == again and one != other


def sliding(f, explain, x, heat, window, n_steps):
    """By loops: the free window with the largest sum, first in C order."""
    (h, w), removed, scores = window, np.zeros(x.shape[:2], bool), [float(f(x))]
    point = np.asarray(x)
    for _ in range(n_steps):
        best, place = -np.inf, None
        for i, j in np.ndindex(x.shape[0] - h + 1, x.shape[1] - w + 1):
            total = heat[i : i + h, j : j + w].sum()
            if not removed[i : i + h, j : j + w].any() and total > best:
                best, place = total, (i, j)
        if place is not None:
            i, j = place
            removed[i : i + h, j : j + w] = True
        point = np.where(removed[..., None], 0.0, x)
        scores.append(float(f(jnp.asarray(point))))
        heat = np.asarray(explain(jnp.asarray(point)))
    return np.array(scores)


def test_selectivity_slides_its_window():
    recompute = jx.input_x_gradient(of_image)
    heat = np.asarray(HEAT)
    for explain, setting in ((lambda _: heat, None), (jax.jit(recompute), recompute)):
        want = sliding(
            of_image, explain, np.asarray(IMAGE), heat, (3, 2), 8
        )  # at most six fit: the last steps do nothing
        measure = M.selectivity(of_image, window=(3, 2), n_steps=8, recompute=setting)
        curve = jax.jit(measure.curve)(HEAT, IMAGE)
        assert relative(curve.score, want) < 1e-12
        assert relative(jax.jit(measure)(HEAT, IMAGE), trapezoid(want, np.linspace(0, 1, 9))) < 1e-12


# What features are replaced by


def imputed(x, mask):
    """The dense linear system of one plane, solved directly."""
    h, w = x.shape
    places = [tuple(p) for p in np.argwhere(mask)]
    a, right = np.zeros((len(places),) * 2), np.zeros(len(places))
    for row, (i, j) in enumerate(places):
        for di, dj in np.ndindex(3, 3):
            k, m = i + di - 1, j + dj - 1
            if (di, dj) == (1, 1) or not (0 <= k < h and 0 <= m < w):
                continue
            weight = 1 / 6 if 1 in (di, dj) else 1 / 12
            a[row, row] += weight
            if mask[k, m]:
                a[row, places.index((k, m))] -= weight
            else:
                right[row] += weight * x[k, m]
    out = np.array(x)
    out[mask] = np.linalg.solve(a, right)
    return out


def test_imputation_solves_the_system():
    fill = jax.jit(M.removal.impute(noise=0.0).fill)
    for seed, share in ((0, 0.2), (1, 0.7), (2, 0.95)):
        mask = np.random.default_rng(seed).random((9, 7, 2)) < share
        x = jax.random.normal(jax.random.key(seed), mask.shape) + 3
        want = np.stack([imputed(np.asarray(x[..., c]), mask[..., c]) for c in range(2)], axis=-1)
        assert relative(fill(x, mask, jax.random.key(0)), want) < 1e-7
    everything = fill(IMAGE, np.ones(IMAGE.shape, bool), jax.random.key(0))
    assert relative(everything, np.broadcast_to(IMAGE.mean((0, 1)), IMAGE.shape)) < 1e-12
    assert relative(fill(IMAGE, np.zeros(IMAGE.shape, bool), jax.random.key(0)), IMAGE) == 0
    noisy = M.removal.impute(noise=0.5)
    mask = jnp.zeros((40, 40, 1), bool).at[::2].set(True)
    change = noisy.fill(jnp.ones(mask.shape), mask, jax.random.key(1)) - 1
    assert (change[1::2] == 0).all() and abs(float(change[::2].std()) - 0.5) < 0.03
    planes_last = M.removal.impute(noise=0.0, axes=(1, 2)).fill(
        jnp.moveaxis(x, -1, 0), jnp.moveaxis(mask_of(x), -1, 0), jax.random.key(0)
    )
    assert relative(jnp.moveaxis(planes_last, 0, -1), fill(x, mask_of(x), jax.random.key(0))) < 1e-9


def mask_of(x):
    return jnp.broadcast_to((jnp.arange(x.shape[1]) % 3 == 0)[None, :, None], x.shape)


def test_road_imputes_each_share_from_the_whole():
    measure = M.road(of_image, shares=(0.25, 0.5), baseline=M.removal.impute(noise=0.0))
    curve = jax.jit(measure.curve)(HEAT, IMAGE, key=jax.random.key(0))
    order = np.argsort(-np.asarray(HEAT.sum(-1)).ravel(), kind="stable")
    for score, n in zip(curve.score, (9, 18), strict=True):
        mask = np.isin(np.arange(36), order[:n]).reshape(6, 6)
        point = np.stack([imputed(np.asarray(IMAGE[..., c]), mask) for c in range(2)], axis=-1)
        assert relative(score, of_image(jnp.asarray(point))) < 1e-6
    assert relative(jax.jit(measure)(HEAT, IMAGE, key=jax.random.key(0)), curve.score.mean()) < 1e-12
    assert M.road(of_image).needs_key


def test_replacements_of_each_kind():
    groups = jx.patches(2, 2)
    curve = lambda b, key=None: (
        jax.jit(M.pixel_flipping(of_image, groups=groups, baseline=b).curve)(HEAT, IMAGE, key=key).score
    )
    key = jax.random.key(3)
    means = jnp.broadcast_to(IMAGE.mean((0, 1)), IMAGE.shape)
    assert relative(curve(M.removal.channel_mean())[-1], of_image(means)) < 1e-12
    blurred = M.removal.blur(1.0)(IMAGE)
    assert relative(curve(M.removal.blur(1.0))[-1], of_image(blurred)) < 1e-12
    assert relative(M.removal.blur(1.0)(0 * IMAGE + 2.5), 0 * IMAGE + 2.5) < 1e-12  # sums to one, at edges too
    impulse = jnp.zeros((21, 21, 1)).at[10, 10].set(1.0)
    across = jnp.arange(21.0) - 10
    want = np.exp(-0.5 * (across[:, None] ** 2 + across[None] ** 2) / 4)
    assert relative(M.removal.blur(2.0)(impulse)[..., 0], want / want.sum()) < 2e-3
    one, again, other = (
        curve(M.removal.uniform(0, 1), key),
        curve(M.removal.uniform(0, 1), key),
        curve(M.removal.uniform(0, 1), jax.random.key(4)),
    )
    assert relative(one, again) == 0 and relative(one[1:], other[1:]) > 1e-3 and one[0] == other[0]
    pool = jnp.stack([0 * IMAGE, IMAGE + 1, 2 * IMAGE])
    ends = {float(curve(jx.references(pool), jax.random.key(seed))[-1]) for seed in range(8)}
    assert len(ends) > 1
    assert all(min(abs(end - float(of_image(b))) for b in pool) < 1e-9 for end in ends)
    drawn = M.removal.uniform(2.0, 3.0).fill(jnp.zeros(1000), jnp.arange(1000) % 2 == 0, key)
    assert (drawn[1::2] == 0).all() and 2 <= drawn[::2].min() < 2.05 and 2.95 < drawn[::2].max() <= 3


# Controls


def test_greedy_is_a_loop_and_its_first_step_is_best():
    removed = []
    for _ in range(N):
        losses = {
            g: float(NET(jnp.where(np.isin(np.arange(N), [*removed, g]), B, X))) for g in range(N) if g not in removed
        }
        removed.append(min(losses, key=losses.get))
    got = jax.jit(M.controls.greedy(NET, baseline=B))(X)
    assert np.argsort(-got).tolist() == removed and sorted(got.tolist()) == list(range(1, N + 1))
    first = jax.jit(M.pixel_flipping(NET, baseline=B).curve)(got, X).score[1]
    assert all(first <= NET(X.at[g].set(B[g])) + 1e-12 for g in range(N))
    drawn = M.controls.greedy(NET, baseline=M.removal.uniform(), groups=np.arange(N) // 2)
    assert sorted(set(jax.jit(drawn)(X, key=jax.random.key(0)).tolist())) == [1, 2, 3]


def test_random_maps():
    explain = M.controls.random_map(NET)
    maps = jax.jit(jax.vmap(explain))(jnp.zeros((500, N)), key=jax.random.split(jax.random.key(0), 500))
    assert abs(maps.mean()) < 0.05 and abs(maps.std() - 1) < 0.05
    with pytest.raises(jx.MissingKeyError):
        explain(X)


# What all share

MEASURES = {
    "pixel_flipping": functools.partial(
        M.pixel_flipping, groups=jx.patches(2, 3), baseline=M.removal.uniform(), chunk_size=2
    ),
    "recomputed": lambda f: M.pixel_flipping(
        f, groups=jx.patches(3, 3), recompute=jx.gradient(f), baseline=M.removal.uniform()
    ),
    "insertion": functools.partial(M.insertion, groups=jx.patches(2, 3), baseline=M.removal.uniform()),
    "selectivity": functools.partial(M.selectivity, window=(2, 2), n_steps=3, baseline=M.removal.uniform()),
    "road": functools.partial(M.road, shares=(0.5,)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_transforms_and_not_finite_attributions(name):
    score = lambda x, y: jnp.tanh(of_image(x)) * y
    measure = MEASURES[name](score)
    xs = jnp.stack([IMAGE, IMAGE[::-1], IMAGE + 1])
    ys, keys = jnp.arange(1.0, 4), jax.random.split(jax.random.key(0), 3)
    one = jax.jit(lambda r, x, y, k: measure(r, x, y, key=k))
    want = jnp.stack([one(HEAT, *row) for row in zip(xs, ys, keys, strict=True)])
    batch = jax.jit(jax.vmap(lambda r, x, y, k: measure(r, x, y, key=k), in_axes=(None, 0, 0, 0)))
    assert relative(batch(HEAT, xs, ys, keys), want) < 1e-10
    assert np.isfinite(want).all() and np.isnan(one(HEAT.at[3, 3, 1].set(jnp.inf), xs[0], ys[0], keys[0]))
    with pytest.raises(jx.MissingKeyError):
        measure(HEAT, IMAGE, 1.0)


def test_maps_over_places_count_for_all_channels():
    places = HEAT[..., 0]
    measure = jax.jit(M.pixel_flipping(of_image))
    spread = jnp.broadcast_to(places[..., None], HEAT.shape) / 2
    assert measure(places, IMAGE) == measure(spread, IMAGE) == measure(places[..., None], IMAGE)
    with pytest.raises(jx.StructureError) as error:
        measure(jnp.zeros((5, 6)), IMAGE)
    assert "attribution[..., None]" in text(error) and "(5, 6)" in text(error)
    with pytest.raises(jx.StructureError):  # over which axis?
        M.pixel_flipping(lambda x: x.sum())(jnp.zeros((4, 4)), jnp.zeros((4, 4, 4)))


def test_pytrees_rank_all_leaves_together():
    x = {"a": X, "n": jnp.int32(2), "b": (B,)}
    f = lambda x: NET(x["a"]) * x["n"].astype(float) + jnp.tanh(x["b"][0]).sum()
    heat = {"a": R, "n": jnp.int32(0), "b": (R[::-1] * 0.9,)}
    flat = lambda v: f({"a": v[:N], "n": x["n"], "b": (v[N:],)})
    together = jnp.concatenate([X, B])
    want = jax.jit(M.pixel_flipping(flat).curve)(jnp.concatenate([R, R[::-1] * 0.9]), together).score
    assert relative(jax.jit(M.pixel_flipping(f).curve)(heat, x).score, want) < 1e-12
    two = M.pixel_flipping(lambda a, y, b: f({"a": a, "n": y, "b": (b,)}), argnums=(0, 2))
    # The attribution of several arguments is a tuple, as explainers return it.
    assert relative(jax.jit(two)((R, R[::-1] * 0.9), X, jnp.int32(2), B), jnp.trapezoid(want, dx=1 / (2 * N))) < 1e-12


def test_traced_labels_that_do_not_exist_give_nan():
    measure = lambda g: M.pixel_flipping(NET, groups=g, n_groups=3)(R, X)
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    got = jax.jit(jax.vmap(measure))(jnp.stack([labels, labels.at[0].set(3), labels.at[0].set(-1)]))
    assert np.isnan(got).tolist() == [False, True, True]
    assert relative(got[0], jax.jit(M.pixel_flipping(NET, groups=np.asarray(labels)))(R, X)) < 1e-12


REFUSED = {
    "order": (lambda: M.pixel_flipping(NET, order="first"), ["`order`", "'first'", '"least"']),
    "until": (lambda: M.pixel_flipping(NET, until=0.0), ["`until`", "(0, 1]"]),
    "steps": (lambda: M.pixel_flipping(NET, n_steps=0), ["`n_steps`", "positive"]),
    "no function": (lambda: M.pixel_flipping(R, X), ["positional"]),
    "no score": (lambda: M.pixel_flipping(R), ["must be a function"]),
    "baseline": (lambda: M.pixel_flipping(NET, baseline=jnp.zeros(4))(R, X), ["`baseline`", "(4,)"]),
    "shares": (lambda: M.road(NET, shares=(0.0, 0.5)), ["`shares`", "(0, 1]"]),
    "no places": (lambda: M.road(NET)(R, X, key=jax.random.key(0)), ["impute", "two axes", "(6,)"]),
    "window": (
        lambda: M.selectivity(of_image, window=(7, 1))(HEAT, IMAGE),
        ["fits into it", "(7, 1)", "pixel_flipping"],
    ),
    "blur": (lambda: M.removal.blur(0.0), ["`sigma`", "0.0"]),
    "imputation's noise": (lambda: M.removal.impute(noise=-1.0), ["`noise`", "negative"]),
    "dropout": (
        lambda: M.pixel_flipping(lambda x: NET(x * jax.random.uniform(jax.random.key(0), (N,))))(R, X),
        ["random"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, words = REFUSED[case]
    with pytest.raises((jx.JaxplainError, TypeError)) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
