"""`python -m jaxplain.zoo [names]`: train networks and write their weights."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax

from jaxplain import zoo


def main() -> None:
    """Trains and saves each named network or expert (all by default) and prints its quality."""
    known = zoo.NAMES + zoo.SCENE_NAMES + zoo.EXPERT_NAMES
    parser = argparse.ArgumentParser(prog="python -m jaxplain.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent / "weights",
        help="where to write <name>.npz (default: over the weights that ship)",
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no network {unknown[0]!r}; the names are {', '.join(known)}")
    args.folder.mkdir(parents=True, exist_ok=True)

    for name in args.names or known:
        wall, cpu = time.perf_counter(), time.process_time()
        if name in zoo.EXPERT_NAMES:
            expert = jax.block_until_ready(zoo.train_expert(name, seed=args.seed))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            path = zoo.save_expert(name, expert, args.folder)
            quality = "no accuracy: chapters 1.2 and 1.3 print its likelihood"
        else:
            net = zoo.train(name, seed=args.seed)
            jax.block_until_ready(net.params)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            path = zoo.save(net, args.folder)
            images, labels = zoo.held_out(name)
            share = zoo.accuracy(net, images, labels)
            quality = f"{share:6.2%} of {len(labels):,} held-out {'digits' if name in zoo.NAMES else 'scenes'}"
        print(f"{name:17} {quality}, {wall:5.1f} s ({cpu:.1f} s of processor time), {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
