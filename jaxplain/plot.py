"""Pictures of explanations. Matplotlib is imported on first use (`pip install jaxplain[plot]`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxplain._errors import StructureError, explain_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIVERGING = "RdBu_r"  # red: positive, blue: negative, white: zero


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(explain_error("plot: needs matplotlib.", fix='pip install "jaxplain[plot]"')) from error
    return plt


def _colors(values: Iterable[NDArray[np.float64]], vmax: float) -> dict[str, Any]:
    """Color arguments of maps on one scale, centered at zero, or on its upper half if no value is negative."""
    colors = _pyplot().get_cmap(DIVERGING)
    if any((v < 0).any() for v in values):
        return {"cmap": colors, "vmin": -vmax, "vmax": vmax, "interpolation": "nearest"}
    from matplotlib.colors import ListedColormap

    upper = ListedColormap(colors(np.linspace(0.5, 1, 128)), name=f"{DIVERGING}_upper")
    return {"cmap": upper, "vmin": 0, "vmax": vmax, "interpolation": "nearest"}


def _map2d(values: ArrayLike) -> NDArray[np.float64]:
    """An attribution as (height, width): a trailing channel axis is summed."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 3:
        array = array.sum(axis=-1)
    if array.ndim != 2:
        raise StructureError(
            explain_error(
                "plot: a map must have shape (height, width) or (height, width, channels).",
                got=f"shape {array.shape}",
                fix="for one example: plot.image(attributions[0])",
            )
        )
    return array


def limit(maps: Iterable[ArrayLike], percentile: float = 99.5) -> float:
    """The shared color limit of several maps: a high percentile of |values|, so that one pixel does not hide the rest.

    Arguments:
        maps: Maps that share the limit.
        percentile: Percentile of |values|.
    """
    values = np.abs(np.concatenate([np.ravel(np.asarray(m, np.float64)) for m in maps]))
    values = values[np.isfinite(values)]
    top = float(np.percentile(values, percentile)) if values.size else 0.0
    return top if top > 0 else float(values.max(initial=0.0)) or 1.0


def image(
    attribution: ArrayLike,
    input: ArrayLike | None = None,
    *,
    vmax: float | None = None,
    percentile: float = 99.5,
    title: str | None = None,
    colorbar: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """One heat map with colors centered at zero, and the outline of the input in gray.

    Arguments:
        attribution: Array (height, width[, channels]); channels are summed.
        input: The explained image, drawn as a thin gray outline. `None` draws the map alone.
        vmax: Color limit (±vmax). `None` uses the `percentile` of |attribution|.
        percentile: Percentile for the color limit.
        title: Title of the map.
        colorbar: Whether to draw a color bar.
        ax: Axes to draw on. `None` makes a new figure.
    """
    plt = _pyplot()
    values = _map2d(attribution)
    if ax is None:
        _, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    shown = ax.imshow(values, **_colors([values], limit([values], percentile) if vmax is None else vmax))
    if input is not None:
        outline(ax, input)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color("0.6")
    if title:
        ax.set_title(title, fontsize=9)
    if colorbar:
        ax.figure.colorbar(shown, ax=ax, shrink=0.8, format="%.2g")
    return ax


def outline(ax: "Axes", input: ArrayLike) -> None:
    """Draws the contour of the input at half its brightness, which shows the input without hiding the map."""
    picture = np.asarray(input, np.float64)
    picture = picture.mean(axis=-1) if picture.ndim == 3 else picture
    low, high = picture.min(), picture.max()
    if high > low:
        ax.contour(picture, levels=[(low + high) / 2], colors="0.25", linewidths=0.5, alpha=0.7)


def grid(
    maps: Mapping[str, Sequence[ArrayLike] | NDArray],
    inputs: Sequence[ArrayLike] | NDArray,
    *,
    titles: Sequence[str] | None = None,
    suptitle: str | None = None,
    share: bool = True,
    percentile: float = 99.5,
    size: float = 0.95,
) -> "Figure":
    """Methods × examples: the inputs in the first row, then for each method one row of maps with its own color bar.

    Arguments:
        maps: {row name: maps of all examples, each (height, width[, channels])}. Maps of NaN alone are labeled "NaN".
        inputs: The explained images.
        titles: One title for each example.
        suptitle: Title of the figure.
        share: Whether the maps of a row share a color scale.
        percentile: Percentile of the |values| at which a scale ends.
        size: Inches per panel.
    """
    n, rows = len(inputs), len(maps) + 1
    figure, axes = _pyplot().subplots(
        rows,
        n + 1,  # the last column is for the color bars
        figsize=(size * n + 2.2, size * rows + 0.3),
        width_ratios=[1] * n + [0.08],
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax, picture in zip(axes[0, :n], inputs, strict=True):
        ax.imshow(np.asarray(picture).squeeze(), cmap="gray_r", interpolation="nearest")
    for ax, text in zip(axes[0], titles or (), strict=False):
        ax.set_title(text, fontsize=8)
    axes[0, n].set_axis_off()
    _row_label(axes[0, 0], "input")
    for row, (name, values) in zip(axes[1:], maps.items(), strict=True):
        flat = [_map2d(value) for value in values]
        shared = _colors(flat, limit(flat, percentile))
        for ax, value, picture in zip(row[:n], flat, inputs, strict=True):
            shown = ax.imshow(value, **(shared if share else _colors([value], limit([value], percentile))))
            if np.isfinite(value).any():
                outline(ax, picture)
            else:
                ax.text(0.5, 0.5, "NaN", transform=ax.transAxes, ha="center", va="center", fontsize=8, color="0.6")
        _row_label(row[0], name)
        if share:
            bar = figure.colorbar(shown, cax=row[n], format="%.3g")
            bar.ax.tick_params(labelsize=6, width=0.4, length=2)
            bar.outline.set_linewidth(0.4)
        else:
            row[n].set_axis_off()
    for ax in axes[:, :n].ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
            spine.set_color("0.7")
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def images(
    rows: Mapping[str, Sequence[ArrayLike] | NDArray],
    *,
    titles: Sequence[str] | None = None,
    suptitle: str | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
    size: float = 0.75,
) -> "Figure":
    """Rows of images, such as prototypes or examples. One channel is drawn dark on white, three channels as colors.

    Arguments:
        rows: {row name: images, each (height, width[, 1 or 3])}; rows may differ in length.
        titles: One title for each column.
        suptitle: Title of the figure.
        limits: Values that are drawn white and black; values beyond are clipped. `None` uses each image's own range.
        size: Inches per panel.
    """
    n = max(map(len, rows.values()))
    figure, axes = _pyplot().subplots(
        len(rows), n, figsize=(size * n + 1.2, size * len(rows) + 0.3), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(row, pictures, strict=False):
            values = np.asarray(picture, np.float64)
            low, high = limits or (values.min(), values.max())
            shown = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
            if shown.ndim == 3 and shown.shape[-1] == 1:
                shown = shown[..., 0]
            if shown.ndim != 2 and shown.shape[2:] != (3,):
                raise StructureError(
                    explain_error(
                        "plot.images: an image must have shape (height, width[, 1 or 3]).",
                        got=f"shape {shown.shape}",
                        where=f"row {name!r}",
                    )
                )
            ax.imshow(shown, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            ax.spines[:].set(visible=True, linewidth=0.4, color="0.7")
        _row_label(row[0], name)
    for ax, text in zip(axes[0], titles or (), strict=False):
        ax.set_title(text, fontsize=8)
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def _row_label(ax: "Axes", text: str) -> None:
    ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
