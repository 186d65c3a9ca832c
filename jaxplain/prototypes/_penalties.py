"""Penalties of a prototype: functions `(x, *args) -> scalar` that are subtracted from the score."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxplain._checks import checked, number
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import representable
from jaxplain._types import PyTree
from jaxplain.prototypes._parametrizations import image_shape

Penalty = Callable[..., jax.Array]
Strength: TypeAlias = float | jax.Array  # λ


@checked(strength=number(), center=None)
def l2(strength: Strength, center: PyTree | Callable[..., PyTree] = 0.0) -> Penalty:
    r"""$\frac{\lambda}{2} \lVert x - c \rVert_2^2$: the −log density of a Gaussian of variance 1/λ, up to a constant.

    `center` is a number, an input, or a function of the arguments after x (`lambda y: means[y]`).
    """

    def penalty(x: PyTree, *args: Any) -> jax.Array:
        c = center(*args) if callable(center) else center
        if isinstance(c, float | int) or (isinstance(c, jax.Array | np.ndarray | np.generic) and c.ndim == 0):
            c = jax.tree.map(lambda leaf: jnp.full_like(leaf, c), x)
        shapes = [jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree) for tree in (c, x)]
        if shapes[0] != shapes[1]:
            raise StructureError(
                explain_error(
                    "l2: the center differs from x in shape.",
                    got=f"{shapes[0]}",
                    need=f"{shapes[1]}",
                    fix="one center for each class: center=lambda label: means[label]",
                )
            )
        return strength / 2 * _total(jnp.square, jax.tree.map(jnp.subtract, x, c))

    return penalty


@checked(strength=number(), p=number())
def lp(strength: Strength, p: float = 6.0) -> Penalty:
    r"""$\lambda \sum_i |x_i|^p$, which with a large p prevents extreme values.

    References:
        Mahendran, Vedaldi: Visualizing deep convolutional neural networks using natural pre-images. IJCV 120, 2016.
    """
    if p < 1:
        raise SettingError(
            explain_error("lp: `p` must be at least 1.", got=repr(p), why="|x|^p has no derivative at 0 below")
        )
    # |x| as sign(x) x, whose derivative at 0 is 0, so that blank pixels stay blank.
    return lambda x, *_: strength * _total(lambda leaf: (jnp.sign(leaf) * leaf) ** p, x)


@checked(strength=number())
def total_variation(strength: Strength) -> Penalty:
    r"""$\lambda \sum_p (x_{p + (1,0)} - x_p)^2 + (x_{p + (0,1)} - x_p)^2$ of an image (height, width, channels)."""

    def penalty(x: jax.Array, *_: Any) -> jax.Array:
        image_shape("total_variation", jnp.shape(x))
        vertical, horizontal = (jnp.sum(jnp.square(jnp.diff(x, axis=axis))) for axis in (0, 1))
        return strength * (vertical + horizontal)

    return penalty


@checked(strength=number())
def blur(strength: Strength, sigma: float = 1.0) -> Penalty:
    r"""$\frac{\lambda}{2} \lVert x - g_\sigma * x \rVert_2^2$, the details that a Gaussian blur of σ pixels removes.

    For images (height, width, channels). The edges are extended outward, so that constant images have no penalty. This
    is the blur of Yosinski et al. (Understanding neural networks through deep visualization, 2015), who applied it
    between steps, as a penalty.
    """
    if not sigma > 0:
        raise SettingError(explain_error("blur: `sigma` must be positive, in pixels.", got=repr(sigma)))
    reach = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()

    def along(x: jax.Array, axis: int) -> jax.Array:
        length = x.shape[axis]
        padded = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        return sum(w * lax.slice_in_dim(padded, i, i + length, axis=axis) for i, w in enumerate(weights.tolist()))

    def penalty(x: jax.Array, *_: Any) -> jax.Array:
        image_shape("blur", jnp.shape(x))
        return strength / 2 * jnp.sum(jnp.square(x - along(along(x, 0), 1)))

    return penalty


@checked(strength=number())
def expert(strength: Strength, log_prob: Callable[[PyTree], jax.Array]) -> Penalty:
    r"""$-\lambda \log p(x)$ of an expert p, which rates how typical an input is.

    With λ = 1 and a log-probability of the class as score, the objective is that of p(x | class), because
    $p(x \mid c) \propto p(c \mid x)\,p(x)$. `log_prob` may omit a constant: `lambda x: -rbm.free_energy(x)`.
    """
    return lambda x, *_: -strength * log_prob(x)


@checked(strength=number())
def shell(strength: Strength = 1.0) -> Penalty:
    r"""$-\lambda \log p(r)$ of the radius $r = \lVert z \rVert_2$ of a code $z \sim \mathcal N(0, I_d)$.

    Up to a constant, this is $\lambda\,(r^2/2 - (d - 1) \log r)$. Codes drawn from the prior lie near a sphere of
    radius $\sqrt{d - 1}$, although the density is highest at 0. The code of highest density (`l2(1.0)`) is therefore
    unlike drawn codes, and its image is a blend; this penalty favors a typical code. It is infinite at 0, so start from
    a draw.
    """

    def penalty(z: PyTree, *_: Any) -> jax.Array:
        squared = _total(jnp.square, z)
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(z))
        return strength * (squared - (size - 1) * jnp.log(squared)) / 2

    return penalty


@checked(strength=number())
def diversity(strength: Strength, features: Callable[[PyTree], PyTree] = lambda x: x) -> Penalty:
    r"""λ × the mean cosine between the `features` of prototypes that are optimized together along a leading axis of x.

    The score is then their sum, `lambda xs, y: jnp.sum(jax.vmap(score, (0, None))(xs, y))`. Parts for one image need
    `jax.vmap`: of another penalty, or `Parametrization(jax.vmap(p.decode), jax.vmap(p.encode))`.

    References:
        Olah, Mordvintsev, Schubert: Feature visualization. Distill 2017.
    """

    def penalty(xs: PyTree, *_: Any) -> jax.Array:
        rows = jax.vmap(lambda x: ravel_pytree(features(x))[0])(xs)
        smallest = representable(1e-12, rows.dtype)
        rows = rows / jnp.sqrt(jnp.sum(jnp.square(rows), -1, keepdims=True) + smallest)  # a blank row has no direction
        n = len(rows)
        if n < 2:
            raise SettingError(
                explain_error("diversity: needs two prototypes or more.", got=f"{n} along the leading axis")
            )
        cosines = rows @ rows.T
        return strength * (jnp.sum(cosines) - jnp.trace(cosines)) / (n * (n - 1))

    return penalty


def _total(function: Callable[[jax.Array], jax.Array], x: PyTree) -> jax.Array:
    return sum(jnp.sum(function(leaf)) for leaf in jax.tree.leaves(x))  # type: ignore[return-value]
