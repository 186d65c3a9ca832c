"""Data that ships with the package: 10,000 handwritten digits of MNIST, and cluttered scenes made of them."""

from jaxplain.datasets._cluttered import Scene, cluttered_mnist
from jaxplain.datasets._mnist import Digits, mnist

__all__ = ["Digits", "Scene", "cluttered_mnist", "mnist"]
