"""All components in one picture."""

import matplotlib

from benchmarks.report import COLORS, GREY
from benchmarks.training import VERSIONS

LIMIT = 1.35  # times PyTorch: what a whole layer or block may take in NumPy
BAND, LIMIT_COLOR = "#e8eef4", "#b03a2e"
ONE_COLUMN = 30  # lines, beyond which there are two


def by_family(found):
    """[(family, its components)], in the order of those given."""
    names = dict.fromkeys(each["family"] for each in found)
    return [(name, [each for each in found if each["family"] == name]) for name in names]


def draw(path, figures):
    """A line for each component, on it a dot for each engine: how many times PyTorch's time."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [each for each in figures["components"] if each["ratios"]["gradients"]]
    columns = in_columns(by_family(shown))
    height = max(map(len, columns))
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style | {"axes.spines.left": False}):
        size = (6.2 * len(columns) + 1, 0.22 * height + 2)
        figure, axes = pyplot.subplots(
            1, len(columns), figsize=size, sharex=True, squeeze=False, layout="constrained"
        )
        for axis, column in zip(axes[0], columns, strict=True):
            draw_column(axis, column, height)
        title = "Value and gradients, in PyTorch's time: left of 1 is faster"
        figure.suptitle(f"{title}\n", fontsize=15)  # the second line is the legend's
        handles = {}
        for axis in axes[0]:
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        under = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.28 / size[1])}
        figure.legend(handles.values(), handles, ncols=4, frameon=False, **under)
        figure.supxlabel(caption(figures["header"]), fontsize=9, color=GREY)
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)


def caption(head):
    versions = ", ".join(f"{n} {head['versions'][n]}" for n in VERSIONS if n in head["versions"])
    return f"{head['device']}   ·   {head['dtype']}   ·   median and 95 % interval\n{versions}"


def in_columns(families):
    """What is written under each other: in one column, or in two of about the same length."""
    if len(lines(families)) <= ONE_COLUMN or len(families) == 1:
        return [lines(families)]
    halves = [(lines(families[:i]), lines(families[i:])) for i in range(1, len(families))]
    return min(halves, key=lambda columns: max(map(len, columns)))


def lines(families):
    """[(label, component)]: a family's name has none, nor has the gap before the next."""
    found = []
    for family, members in families:
        found += [("", None), (family, None), *((each["name"], each) for each in members)]
    return found[1:]


def draw_column(axes, column, height):
    """From top to bottom, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for place, (_, each) in enumerate(column):
        if each is not None:
            draw_line(axes, place, each)
    axes.set_yticks(range(len(column)), [label for label, _ in column])
    for label, (_, each) in zip(axes.get_yticklabels(), column, strict=True):
        label.set(color=GREY if each is None else "black", style="italic" if each is None else None)
        label.set_weight("bold" if each and each["whole"] else "normal")
    axes.axvline(1, color=COLORS["PyTorch"], linewidth=1.5, zorder=1, label="PyTorch")
    axes.set_xscale("log", base=2)
    axes.xaxis.set(major_locator=LogLocator(2), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(height - 0.4, -0.8)


def draw_line(axes, place, each):
    """The dots of one component, and for a whole layer the limit."""
    ratios = each["ratios"]["gradients"]
    if each["whole"] and "NumPy" in ratios:
        over, under = place - 0.5, place + 0.5
        label = f"the limit of whole layers in NumPy: {LIMIT}"
        axes.axhspan(over, under, color=BAND, linewidth=0, zorder=0)
        axes.plot([LIMIT] * 2, [over, under], color=LIMIT_COLOR, linewidth=2, label=label)
    ends = [times["ratio"] for times in ratios.values()]
    axes.plot([min(ends), max(ends)], [place, place], color="#c8c8c8", linewidth=1, zorder=2)
    for engine, times in ratios.items():
        color = COLORS[engine]
        axes.plot([times["low"], times["high"]], [place, place], color=color, alpha=0.6, zorder=3)
        axes.plot([times["ratio"]], [place], "o", color=color, zorder=4, label=engine)
