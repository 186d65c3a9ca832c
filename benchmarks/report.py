"""Tables of results, as text for the terminal and Markdown for the README."""

from typing import Any

from compare import QUIET


def comparison(rows: list[dict]) -> str:
    """The Markdown table of `compare` results."""
    head = ("what", "ours", "peer", "ours ÷ peer", "ours ÷ floor", "agreement", "settings (ours; peer)", "others")
    table = _markdown(head, [comparison_cells(row) for row in rows])
    if any(row["others"] > QUIET for row in rows):
        table += (
            "\n\nThe machine was busy: `others` is the share of it that other processes took meanwhile. Repeat these."
        )
    return table


def comparison_cells(row: dict) -> tuple[str, ...]:
    agreement = row["agreement"]
    if "over_expected" in agreement:
        how = f"{agreement['over_expected']:.2f} × Monte-Carlo error"
    elif "means" in agreement:
        how = "other draws: means {:.3g}, {:.3g}".format(*agreement["means"])
    else:
        how = f"{agreement['relative_l2']:.0e}, median example {agreement['median_example']:.0e}"
    return (
        f"{row['method']}, {row['problem']}",
        _seconds(row["ours"]["seconds"]),
        f"{row['peer']} {_seconds(row['theirs']['seconds'])}",
        _ratio(row["ours_over_peer"]),
        _ratio(row["ours_over_floor"]),
        how if agreement["agrees"] else f"**DISAGREES** {how}",
        f"{_settings(row['ours']['settings'])}; {_settings(row['theirs']['settings'])}",
        f"{row['others']:.0%}",
    )


def chunks(rows: list[dict]) -> str:
    """Time over the floor by chunk size: one line per network and batch."""
    sizes = sorted({row["chunk_size"] for row in rows})
    groups: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["batch"]), {})[row["chunk_size"]] = row
    body = []
    for (network, batch), by_size in groups.items():
        cells = [f"{by_size[c]['best_over_floor']:.2f}" if "seconds" in by_size[c] else "–" for c in sizes]
        body.append((f"{network}, batch {batch}", *cells))
    return _markdown(("time ÷ floor at chunk size", *map(str, sizes)), body)


def accuracy(rows: list[dict]) -> str:
    head = ("score", "rule", "gap median", "gap p90", "distance median", "distance p90", "steps median (p90)")
    body = [
        (
            row["score"],
            row["rule"],
            *(f"{row[key]:.1e}" for key in ("gap_median", "gap_p90", "distance_median", "distance_p90")),
            f"{row['steps_median']:.0f} ({row['steps_p90']:.0f})",
        )
        for row in rows
    ]
    return _markdown(head, body)


def memory(rows: list[dict]) -> str:
    body = [
        (row["method"], f"{row['network']}, batch {row['batch']}", str(row["n"]), f"{row['temp_bytes'] / 1e6:.1f} MB")
        for row in rows
    ]
    return _markdown(("method", "on", "gradients", "temporary memory"), body)


def compiling(rows: list[dict]) -> str:
    head = ("what", "method", "analysis", "tracing and lowering", "compiling", "temporary memory")
    seconds = ("analysis_seconds", "lowering_seconds", "compile_seconds")
    body = [
        (
            row["network"],
            row["method"],
            *(_seconds(row[key]) if row[key] is not None else "–" for key in seconds),
            f"{row['temp_bytes'] / 1e6:.2f} MB",
        )
        for row in rows
    ]
    return _markdown(head, body)


def prototypes(rows: list[dict]) -> str:
    head = ("network", "steps of ten classes", "ours, steps/s", "by hand, steps/s", "ours ÷ by hand", "difference")
    body = [
        (
            row["network"],
            f"{row['steps']}",
            f"{row['ours_steps_per_second']:.0f}",
            f"{row['by_hand_steps_per_second']:.0f}",
            _ratio(row["speed"]),
            f"{row['largest_difference']:.0e}",
        )
        for row in rows
    ]
    return _markdown(head, body)


def _markdown(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]

    def line(cells: Any) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, body)])


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _ratio(spread: dict) -> str:
    low, high = spread["quartiles"]
    return f"{spread['median']:.2f} ({low:.2f}–{high:.2f})"


def _settings(settings: dict) -> str:
    shown = {
        key: value
        for key, value in settings.items()
        if key not in ("n_steps", "n_samples", "nt_samples", "method") and value is not None
    }
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "–"
