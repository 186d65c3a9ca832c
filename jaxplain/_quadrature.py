"""Quadrature rules on [0, 1]: nodes and weights in float64, from their definitions."""

import numpy as np
from numpy.typing import NDArray

from jaxplain._errors import SettingError, explain_error


def _gauss_legendre(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def _trapezoid(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if n == 1:  # one node cannot hold both ends; the midpoint has the same order
        return _midpoint(1)
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


def _midpoint(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)


def _left(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.arange(n) / n, np.full(n, 1 / n)


def _right(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (np.arange(n) + 1) / n, np.full(n, 1 / n)


RULES = {
    "gauss_legendre": _gauss_legendre,
    "trapezoid": _trapezoid,
    "midpoint": _midpoint,
    "left": _left,
    "right": _right,
}


def nodes_and_weights(method: str, quadrature: str, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`n` nodes in [0, 1] and their weights, which sum to one."""
    if not isinstance(quadrature, str) or quadrature not in RULES:
        raise SettingError(
            explain_error(f"{method}: unknown `quadrature`.", got=repr(quadrature), need=", ".join(map(repr, RULES)))
        )
    return RULES[quadrature](n)
