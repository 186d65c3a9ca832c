"""The digits that ship: shapes, contents, and what happens when the file is damaged."""

import hashlib

import numpy as np
import pytest

from jaxplain.datasets import Digits, _mnist, mnist

TRAIN_COUNTS = [908, 1024, 896, 933, 900, 773, 893, 963, 845, 865]
TEST_COUNTS = [93, 103, 95, 99, 80, 90, 121, 107, 99, 113]


@pytest.fixture(scope="module")
def digits() -> Digits:
    return mnist()


def test_shapes_and_dtypes(digits: Digits) -> None:
    assert [part.shape for part in digits] == [(9000, 28, 28, 1), (9000,), (1000, 28, 28, 1), (1000,)]
    assert [part.dtype for part in digits] == [np.float32, np.int32, np.float32, np.int32]
    assert all(type(part) is np.ndarray for part in digits)


def test_pixels_span_zero_to_one_on_a_background_of_exact_zeros(digits: Digits) -> None:
    for images in (digits.x_train, digits.x_test):
        assert images.min() == 0
        assert images.max() == 1
        assert 0.7 < np.mean(images == 0) < 0.9


def test_class_counts(digits: Digits) -> None:
    assert np.bincount(digits.y_train).tolist() == TRAIN_COUNTS
    assert np.bincount(digits.y_test).tolist() == TEST_COUNTS


@pytest.mark.parametrize(
    ("part", "sha256"),
    [
        ("x_train", "ea90b1996e455f76d4d8526d7712710b2a7b62730b012953f0842ade95f5f410"),
        ("y_train", "7af5865eb7f255e01a7798961ee613c216b20dc36ade8c71e212a5f9dfbfd9a6"),
        ("x_test", "a0daafd546f744f79fe0de8e090ebcf94056e4516ad5e2a33d639e8e32da8e9c"),
        ("y_test", "5c7f51a3c55d723de07d147901d92f6e1b41f853b5c32c53ac79d5d701f4b7e4"),
    ],
)
def test_the_bytes_are_the_original_ones(digits: Digits, part: str, sha256: str) -> None:
    values = getattr(digits, part)
    raw = np.rint(values * 255) if part.startswith("x") else values
    assert hashlib.sha256(raw.astype(np.uint8).tobytes()).hexdigest() == sha256


def test_no_held_out_digit_is_among_the_training_digits(digits: Digits) -> None:
    train = {image.tobytes() for image in digits.x_train}
    assert len(train) == 9000
    assert not any(image.tobytes() in train for image in digits.x_test)


def test_every_call_returns_new_arrays(digits: Digits) -> None:
    mnist().x_test[:] = 0.5
    assert np.array_equal(mnist().x_test, digits.x_test)


def test_a_corrupt_file_is_named_with_both_checksums(tmp_path, monkeypatch) -> None:
    damaged = bytearray(_mnist._FILE.read_bytes())
    damaged[1000] ^= 1
    path = tmp_path / "mnist10k.npz"
    path.write_bytes(damaged)
    monkeypatch.setattr(_mnist, "_FILE", path)
    with pytest.raises(OSError, match="corrupt") as caught:
        mnist()
    message = str(caught.value)
    for part in (str(path), _mnist._SHA256, hashlib.sha256(damaged).hexdigest(), "reinstall"):
        assert part in message


def test_a_missing_file_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_mnist, "_FILE", tmp_path / "absent.npz")
    with pytest.raises(OSError, match=r"(?s)missing.*absent\.npz.*reinstall"):
        mnist()
