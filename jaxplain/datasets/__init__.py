"""Real data small enough to ship: 10,000 handwritten digits of MNIST."""

from jaxplain.datasets._mnist import Digits, mnist

__all__ = ["Digits", "mnist"]
