"""Pictures of explanations. Matplotlib is imported on first use (`pip install jaxplain[plot]`).

Red is positive, blue is negative, and zero is white, or transparent on a photograph, where a map without negative
values goes from purple to yellow. A scale ends at `vmax`, which the color bar states; maps are never normalized.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxplain._errors import SettingError, StructureError, explain_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Style = Literal["overlay", "beside", "outline", "mask"]
Channels = Literal["sum", "abs", "max"]

DIVERGING = "RdBu_r"  # red: positive, blue: negative, white: zero
SEQUENTIAL = "inferno"  # for maps without negative values on photographs
STYLES = ("overlay", "beside", "outline", "mask")
CHANNELS = {
    "sum": lambda values: values.sum(-1),
    "abs": lambda values: np.abs(values).sum(-1),
    "max": lambda values: np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0],
}


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(explain_error("plot: needs matplotlib.", fix='pip install "jaxplain[plot]"')) from error
    return plt


def _colors(
    values: Iterable[NDArray[np.float64]], vmax: float, cmap: "str | Colormap | None" = None, alpha: float | None = None
) -> dict[str, Any]:
    """Color arguments of maps on one scale: from −vmax to vmax, or from 0 if no value is negative.

    With `alpha`, for photographs, opacity grows from zero at zero to `alpha` at the ends, in proportion to |value|.
    """
    from matplotlib.colors import ListedColormap

    is_signed = any((v < 0).any() for v in values)
    position = np.linspace(0, 1, 256)
    size = np.abs(2 * position - 1) if is_signed else position
    chosen = _pyplot().get_cmap(cmap or (DIVERGING if is_signed or alpha is None else SEQUENTIAL))
    name = chosen.name
    if cmap is not None:
        colors = chosen(position)
    elif alpha is not None:  # without the colors near white or black, which would change the photograph itself
        signed = np.where(position < 0.5, 0.22 * (1 - size), 0.78 + 0.22 * size)
        colors = chosen(signed if is_signed else 0.2 + 0.8 * position)
    elif is_signed:
        colors = chosen(position)
    else:
        colors, name = chosen(0.5 + position / 2), f"{name}_upper"
    if alpha is not None:
        colors[:, 3] = alpha * size
    return {"cmap": ListedColormap(colors, name=name), "vmin": -vmax if is_signed else 0, "vmax": vmax}


def _map2d(values: ArrayLike, channels: Channels = "sum", channel_axis: int = -1) -> NDArray[np.float64]:
    """An attribution as (height, width): the channels of a third axis are combined."""
    if channels not in CHANNELS:
        raise SettingError(
            explain_error("plot: unknown `channels`.", got=repr(channels), need=", ".join(map(repr, CHANNELS)))
        )
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 3:
        array = _channels_last(array, channel_axis, "map")
        array = CHANNELS[channels](array)
    if array.ndim != 2:
        raise StructureError(
            explain_error(
                "plot: a map must have shape (height, width) or (height, width, channels).",
                got=f"shape {array.shape}",
                fix="for one example of a batch: plot.image(attributions[0]); for several: plot.grid; for a volume:"
                " plot.volume",
            )
        )
    return array


def _channels_last(array: NDArray, channel_axis: int, what: str) -> NDArray:
    """(height, width, channels) of what has three axes; a batch, a volume or another order of axes is an error."""
    if not isinstance(channel_axis, int) or not -3 <= channel_axis <= 2:
        raise SettingError(explain_error("plot: unknown `channel_axis`.", got=repr(channel_axis), need="-3, …, 2"))
    moved = np.moveaxis(array, channel_axis, -1)
    if moved.shape[-1] > 4 and moved.shape[-1] >= min(moved.shape[:2]):
        raise StructureError(
            explain_error(
                f"plot: a {what} must have shape (height, width) or (height, width, channels).",
                got=f"shape {array.shape}, whose channel axis {channel_axis} has length {moved.shape[-1]}",
                fix="channels first: plot.image(..., channel_axis=0); one example of a batch: plot.image(maps[0]);"
                " a volume: plot.volume; many channels: plot.image(map.sum(-1))",
            )
        )
    return moved


def _picture(
    input: ArrayLike, mean: ArrayLike | None = None, std: ArrayLike | None = None, channel_axis: int = -1
) -> NDArray[np.float64]:
    """The input as (height, width) or (height, width, 3), with its normalization of colors undone."""
    array = np.asarray(input)
    picture = array / 255.0 if array.dtype == np.uint8 else np.asarray(array, np.float64)
    if picture.ndim == 3:
        picture = _channels_last(picture, channel_axis, "picture")
    if std is not None:
        picture = picture * np.asarray(std, np.float64)
    if mean is not None:
        picture = picture + np.asarray(mean, np.float64)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and picture.shape[2:] != (3,):
        raise StructureError(
            explain_error(
                "plot: a picture must have shape (height, width[, 1 or 3]).",
                got=f"shape {array.shape}",
                fix="channels first: plot.image(..., channel_axis=0); one of a batch: plot.image(maps[0], x[0])",
            )
        )
    return picture


def _as_colors(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gray or colored values from 0 to 1 as (height, width, 3)."""
    low, high = np.nanmin(picture), np.nanmax(picture)
    if low < -1e-3 or high > 1 + 1e-3:
        raise StructureError(
            explain_error(
                "plot: a photograph must have values from 0 to 1 (or uint8).",
                got=f"values from {low:.3g} to {high:.3g}",
                fix="plot.image(map, x, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
                " undoes a normalization that was applied before",
            )
        )
    picture = np.clip(picture, 0, 1)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)


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
    style: Style | None = None,
    channels: Channels = "sum",
    channel_axis: int = -1,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    cmap: "str | Colormap | None" = None,
    alpha: float = 0.85,
    vmax: float | None = None,
    percentile: float = 99.5,
    title: str | None = None,
    colorbar: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """One heat map, alone or with the explained image. Zero has no color, and the color bar states the scale.

    ```python
    explain = jx.grad_cam(score)
    jx.plot.image(explain(x, label), x)             # on the photograph
    jx.plot.image(explain(x, label), x, style="mask")
    ```

    Arguments:
        attribution: Array (height, width[, channels]). A coarser map than the input is stretched over it.
        input: The explained image (height, width[, 1 or 3]), from 0 to 1 or uint8. `None` draws the map alone.
        style: "overlay": the map on the image in gray, transparent where the map is zero, which shows signs on
            photographs. "beside": image and map next to each other, which hides nothing. "outline": the map, with the
            contour of the image at half its brightness, for ink on white. "mask": the image itself, fading to white
            where no value is positive. `None`: "overlay" for colored images, "outline" for gray ones.
        channels: How the channels of the attribution become one value: their sum, the sum of their absolute values, or
            the one of largest absolute value, with its sign.
        channel_axis: Axis of the channels of attribution and input; 0 for channels first.
        mean, std: What the input was normalized by before the score, so that `input · std + mean` is the photograph.
        cmap: Colors from −vmax to vmax, or from 0 if no value is negative.
        alpha: Opacity at the ends of the scale, for "overlay".
        vmax: Color limit (±vmax). `None` uses the `percentile` of |attribution|.
        percentile: Percentile for the color limit.
        title: Title of the map.
        colorbar: Whether to draw a color bar.
        ax: Axes to draw on. `None` makes a new figure.

    Returns: the axes.
    """
    if style not in (None, *STYLES):
        raise SettingError(explain_error("plot: unknown `style`.", got=repr(style), need=", ".join(map(repr, STYLES))))
    plt = _pyplot()
    values = _map2d(attribution, channels, channel_axis)
    picture = None if input is None else _picture(input, mean, std, channel_axis)
    if picture is None and style in ("overlay", "beside", "mask"):
        raise SettingError(explain_error(f"plot.image: style={style!r} needs the input.", fix="plot.image(map, x)"))
    if ax is None:
        _, ax = plt.subplots(figsize=(6 if style == "beside" else 3, 3), layout="constrained")
    scale = limit([values], percentile) if vmax is None else vmax
    shown = _draw(ax, values, picture, style, scale, [values], cmap, alpha)
    _frame(ax)
    if title:
        ax.set_title(title, fontsize=9)
    if colorbar and style != "mask":
        _color_bar(ax, shown)
    return ax


def _color_bar(ax: "Axes | Sequence[Axes]", shown: Any) -> None:
    figure = ax.figure if hasattr(ax, "figure") else ax[0].figure
    bar = figure.colorbar(shown, ax=ax, shrink=0.8, format="%.2g", ticks=_pyplot().MaxNLocator(4))
    bar.ax.tick_params(labelsize=7, width=0.4, length=2)
    bar.outline.set_linewidth(0.4)


def _draw(
    ax: "Axes",
    values: NDArray[np.float64],
    picture: NDArray[np.float64] | None,
    style: Style | None,
    vmax: float,
    shared: Sequence[NDArray[np.float64]],
    cmap: "str | Colormap | None" = None,
    alpha: float = 0.85,
) -> Any:
    """Draw one map in a style on a scale that `shared` maps have in common; return what a color bar describes."""
    if picture is None:
        return ax.imshow(values, **_colors(shared, vmax, cmap), interpolation="nearest")
    style = style or ("overlay" if picture.ndim == 3 else "outline")
    height, width = picture.shape[:2]
    over = (-0.5, width - 0.5, height - 0.5, -0.5)  # the pixels of the image, however many the map has
    smooth = "nearest" if values.shape == (height, width) else "bilinear"
    if style == "outline":
        shown = ax.imshow(values, **_colors(shared, vmax, cmap), interpolation=smooth, extent=over)
        outline(ax, picture)
        return shown
    colors = _as_colors(picture)
    if style == "overlay":
        # Luminance by Rec. 709, lightened, so that all colors are the map's.
        gray = 0.25 + 0.75 * (colors @ np.array([0.2126, 0.7152, 0.0722]))
        ax.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        return ax.imshow(values, **_colors(shared, vmax, cmap, alpha), interpolation=smooth, extent=over)
    if style == "mask":
        rows = np.minimum(np.arange(height) * values.shape[0] // height, values.shape[0] - 1)
        columns = np.minimum(np.arange(width) * values.shape[1] // width, values.shape[1] - 1)
        kept = np.clip(values[np.ix_(rows, columns)] / vmax, 0, 1)[..., None]
        return ax.imshow(1 - kept * (1 - colors), interpolation="nearest")
    gap = 0.04 * width
    ax.imshow(colors, interpolation="nearest", extent=over)
    left = width + gap
    shown = ax.imshow(
        values, **_colors(shared, vmax, cmap), interpolation=smooth, extent=(left - 0.5, left + width - 0.5, *over[2:])
    )
    ax.set_xlim(-0.5, left + width - 0.5)
    ax.spines[:].set_visible(False)
    return shown


def _frame(ax: "Axes", color: str = "0.6") -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color(color)


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
    style: Style | None = None,
    channels: Channels = "sum",
    channel_axis: int = -1,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    titles: Sequence[str] | None = None,
    suptitle: str | None = None,
    share: bool = True,
    percentile: float = 99.5,
    size: float = 0.95,
) -> "Figure":
    """Methods × examples: the inputs in the first row, then for each method one row of maps with its own color bar.

    Several classes of one photograph are several examples: repeat it in `inputs`, and name the classes in `titles`.

    Arguments:
        maps: {row name: maps of all examples, each (height, width[, channels])}. Maps of NaN alone are labeled "NaN".
        inputs: The explained images.
        style, channels, channel_axis, mean, std: As in `plot.image`.
        titles: One title for each example.
        suptitle: Title of the figure.
        share: Whether the maps of a row share a color scale. Otherwise each states the end of its own in a corner.
        percentile: Percentile of the |values| at which a scale ends.
        size: Inches per panel.

    Returns: the figure.
    """
    if style not in (None, *STYLES) or style == "beside":
        need = ", ".join(repr(name) for name in STYLES if name != "beside")
        raise SettingError(explain_error("plot.grid: unknown `style`.", got=repr(style), need=need))
    pictures = [_picture(input, mean, std, channel_axis) for input in inputs]
    n, rows = len(pictures), len(maps) + 1
    for name, values in (*maps.items(), *([] if titles is None else [("titles", titles)])):
        if len(values) != n:
            raise StructureError(
                explain_error(
                    "plot.grid: needs one map and one title for each input.",
                    got=f"{len(values)} of {name!r} for {n} inputs",
                    fix="for one example: plot.grid({name: map[None]}, x[None])",
                )
            )
    figure, axes = _pyplot().subplots(
        rows,
        n + 1,  # the last column is for the color bars
        figsize=(size * n + 2.2, size * rows + 0.3),
        width_ratios=[1] * n + [0.08],
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax, picture in zip(axes[0, :n], pictures, strict=True):
        if picture.ndim == 3:
            ax.imshow(_as_colors(picture), interpolation="nearest")
        else:
            ax.imshow(picture, cmap="gray_r", interpolation="nearest")
    for ax, text in zip(axes[0], titles or (), strict=False):
        ax.set_title(text, fontsize=8)
    axes[0, n].set_axis_off()
    _row_label(axes[0, 0], "input")
    for row, (name, values) in zip(axes[1:], maps.items(), strict=True):
        flat = [_map2d(value, channels, channel_axis) for value in values]
        for ax, value, picture in zip(row[:n], flat, pictures, strict=True):
            alike = flat if share else [value]
            if np.isfinite(value).any():
                shown = _draw(ax, value, picture, style, limit(alike, percentile), alike)
            else:
                shown = ax.imshow(value, **_colors(alike, limit(alike, percentile)))
                ax.text(0.5, 0.5, "NaN", transform=ax.transAxes, ha="center", va="center", fontsize=8, color="0.6")
            if not share:
                ends = f"{shown.norm.vmax:.2g}" if shown.norm.vmin == 0 else f"±{shown.norm.vmax:.2g}"
                corner = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "fontsize": 6}
                ax.text(0.98, 0.02, ends, **corner, bbox={"color": "w", "alpha": 0.7, "pad": 0.5, "linewidth": 0})
        _row_label(row[0], name)
        if share and style != "mask":
            bar = figure.colorbar(shown, cax=row[n], format="%.3g")
            bar.ax.tick_params(labelsize=6, width=0.4, length=2)
            bar.outline.set_linewidth(0.4)
        else:
            row[n].set_axis_off()
    for ax in axes[:, :n].ravel():
        _frame(ax, "0.7")
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def series(
    attribution: ArrayLike,
    signal: ArrayLike,
    *,
    time: ArrayLike | None = None,
    vmax: float | None = None,
    percentile: float = 99.5,
    title: str | None = None,
    colorbar: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """A signal over time, with its attribution as the color of the area under the curve.

    Arguments:
        attribution: Array (time,), in units of the score.
        signal: Array (time,).
        time: Positions of the values. `None` counts them.
        vmax: Color limit (±vmax). `None` uses the `percentile` of |attribution|.
        percentile: Percentile for the color limit.
        title: Title of the picture.
        colorbar: Whether to draw a color bar.
        ax: Axes to draw on. `None` makes a new figure.

    Returns: the axes.
    """
    plt = _pyplot()
    values, curve = np.asarray(attribution, np.float64), np.asarray(signal, np.float64)
    if values.ndim != 1 or curve.shape != values.shape:
        raise StructureError(
            explain_error(
                "plot.series: needs an attribution and a signal of one shape (time,).",
                got=f"attribution {values.shape}, signal {curve.shape}",
                fix="for one of several channels: plot.series(attribution[:, 0], x[:, 0])",
            )
        )
    at = np.arange(values.size) if time is None else np.asarray(time, np.float64)
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
    scale = limit([values], percentile) if vmax is None else vmax
    edges = np.concatenate([[at[0]], (at[1:] + at[:-1]) / 2, [at[-1]]])
    low, high = float(np.nanmin(curve)), float(np.nanmax(curve))
    room = 0.08 * ((high - low) or 1.0)
    colored = ax.pcolormesh(edges, [low - room, high + room], values[None], **_colors([values], scale))
    under = ax.fill_between(at, low - room, curve, facecolor="none", linewidth=0)
    colored.set_clip_path(under.get_paths()[0], transform=ax.transData)
    ax.plot(at, curve, color="0.1", linewidth=0.9)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(low - room, high + room)
    ax.tick_params(labelsize=7, width=0.4, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)
    if colorbar:
        _color_bar(ax, colored)
    return ax


def volume(
    attribution: ArrayLike,
    input: ArrayLike | None = None,
    *,
    axis: int = 0,
    n_slices: int = 6,
    vmax: float | None = None,
    percentile: float = 99.5,
    size: float = 1.6,
) -> "Figure":
    """Evenly spaced slices of a volume's map on one scale, each with the outline of the volume's slice.

    Arguments:
        attribution: Array (depth, height, width).
        input: The explained volume, of the same shape.
        axis: Axis that is cut.
        n_slices: Number of slices.
        vmax: Color limit (±vmax). `None` uses the `percentile` of |attribution|.
        percentile: Percentile for the color limit.
        size: Inches per panel.

    Returns: the figure.
    """
    values = np.asarray(attribution, np.float64)
    shape = values.shape if input is None else np.shape(input)
    if values.ndim != 3 or shape != values.shape:
        raise StructureError(
            explain_error(
                "plot.volume: needs a map (depth, height, width), and an input of its shape.",
                got=f"map {values.shape}, input {None if input is None else shape}",
                fix="for several channels: plot.volume(attribution.sum(-1), x.mean(-1))",
            )
        )
    scale = limit([values], percentile) if vmax is None else vmax
    places = np.unique(np.linspace(0, values.shape[axis] - 1, n_slices + 2).round().astype(int)[1:-1])
    figure, axes = _pyplot().subplots(
        1, len(places), figsize=(size * len(places) + 0.8, size + 0.3), squeeze=False, layout="constrained"
    )
    for ax, place in zip(axes[0], places, strict=True):
        shown = ax.imshow(values.take(place, axis), **_colors([values], scale), interpolation="nearest")
        if input is not None:
            outline(ax, np.asarray(input).take(place, axis))
        ax.set_title(f"slice {place}", fontsize=8)
        _frame(ax)
    _color_bar(list(axes[0]), shown)
    return figure


def layers(
    maps: Mapping[str, ArrayLike],
    input: ArrayLike | None = None,
    *,
    channels: Channels = "sum",
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    percentile: float = 99.5,
    size: float = 1.6,
) -> "Figure":
    """The maps of a network's layers, from the input to the head, each on its own scale, which its title states.

    Arguments:
        maps: {layer: map (height, width[, channels])}, for example {name: conductance(f, at=name)(x)}.
        input: The explained image, drawn first.
        channels, mean, std: As in `plot.image`.
        percentile: Percentile of the |values| at which a scale ends.
        size: Inches per panel.

    Returns: the figure.
    """
    n = len(maps) + (input is not None)
    figure, axes = _pyplot().subplots(1, n, figsize=(size * n, size + 0.45), squeeze=False, layout="constrained")
    free = list(axes[0])
    if input is not None:
        ax = free.pop(0)
        picture = _picture(input, mean, std)
        ax.imshow(_as_colors(picture) if picture.ndim == 3 else picture, cmap="gray_r", interpolation="nearest")
        ax.set_title("input", fontsize=8)
    for ax, (name, values) in zip(free, maps.items(), strict=True):
        flat = _map2d(values, channels)
        scale = limit([flat], percentile)
        ax.imshow(flat, **_colors([flat], scale), interpolation="nearest")
        ax.set_title(f"{name}\n{flat.shape[0]} × {flat.shape[1]}, ±{scale:.2g}", fontsize=7)
    for ax in axes[0]:
        _frame(ax)
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
