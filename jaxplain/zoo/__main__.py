"""`python -m jaxplain.zoo [names]`: train networks and write their weights."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax

from jaxplain import zoo
from jaxplain.datasets import mnist


def main() -> None:
    """Train each named network (all by default), save it, say how well it does."""
    parser = argparse.ArgumentParser(prog="python -m jaxplain.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(zoo.NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent / "weights",
        help="where to write <name>.npz (default: over the weights that ship)",
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in zoo.NAMES]:
        parser.error(f"no network {unknown[0]!r}; the names are {', '.join(zoo.NAMES)}")
    args.folder.mkdir(parents=True, exist_ok=True)

    digits = mnist()
    for name in args.names or zoo.NAMES:
        wall, cpu = time.perf_counter(), time.process_time()
        net = zoo.train(name, seed=args.seed)
        jax.block_until_ready(net.params)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        path = zoo.save(net, args.folder)
        share = zoo.accuracy(net, digits.x_test, digits.y_test)
        print(
            f"{name:12} {share:6.1%} of {len(digits.y_test):,} held-out digits, "
            f"{wall:5.1f} s ({cpu:.1f} s of processor time), "
            f"{path.stat().st_size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
