"""The agreement of several searches as a table, a picture and a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import ASCII, SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.reports.drawing import LINE_COLOR, TEXT_COLOR
from d2go_fbnetv5.reports.html import figure_image, figures_table, page, section
from d2go_fbnetv5.reports.plots import blank_figure, plain_text
from d2go_fbnetv5.reports.run_agreement import PairAgreement, TaskAgreement
from d2go_fbnetv5.utils.formatting import format_metric, format_share

_EXPLANATION = (
    "Equal: share of the blocks that both runs keep or both leave out. By chance: that share if they kept as many "
    "blocks each, anywhere. Correlation: of all blocks' probabilities."
)


def agreement_table(agreements: Sequence[TaskAgreement], ascii_only: bool = False) -> Table:
    """Make a row for every two runs and task, and where there are more than two runs the mean of each task."""
    table = Table(box=ASCII if ascii_only else SIMPLE_HEAD, caption=_EXPLANATION, caption_justify="left")
    table.add_column("task", style="bold")
    table.add_column("runs")
    for name in ("equal", "by\nchance", "correlation"):
        table.add_column(name, justify="right")
    for agreement in agreements:
        for pair in _rows(agreement):
            cells = [_names(pair), *_figures(pair)]
            if ascii_only:
                cells = [cell.replace("–", "-") for cell in cells]
            table.add_row(Text(agreement.task), *map(Text, cells))
    return table


def agreement_figure(agreements: Sequence[TaskAgreement]) -> Figure:
    """Draw a row for each task: how many of the runs keep each block, and the share of equal decisions of every two."""
    runs = agreements[0].runs
    stages, paths = agreements[0].probabilities.shape[1:]
    side = max(2.4, 0.5 * len(runs) + 1.2)
    figure = blank_figure(
        max(4.0, 0.62 * stages + 1.4) + side + 1.2, max(1.0 + 0.42 * paths, side) * len(agreements)
    )
    grid = figure.subplots(
        len(agreements), 2, squeeze=False, width_ratios=[max(4.0, 0.62 * stages + 1.4), side + 1.2]
    )
    for agreement, (left, right) in zip(agreements, grid, strict=True):
        _draw_blocks(left, agreement)
        _draw_pairs(right, agreement)
    return figure


def agreement_page(agreements: Sequence[TaskAgreement]) -> str:
    """Make one page of it that needs nothing else."""
    runs = agreements[0].runs
    names = ", ".join(escape(run) for run in runs)
    header = (
        f"<header><p class=kicker>FBNetV5 search</p><h1>{len(runs)} runs beside each other</h1>"
        f"<p class=lead>{names}</p></header>"
    )
    heads = ("task", "runs", "equal decisions", "by chance", "correlation")
    rows = [
        [f"<b>{escape(agreement.task)}</b>", escape(_names(pair)), *_figures(pair)]
        for agreement in agreements
        for pair in _rows(agreement)
    ]
    picture = figure_image(agreement_figure(agreements), "How many runs keep each block, and equal decisions")
    note = "Left: how many of the runs keep each block, and its mean probability. Right: equal decisions of two runs."
    return page(
        f"FBNetV5 search: {len(runs)} runs",
        header,
        [section("Agreement", figures_table(heads, rows), _EXPLANATION), section("Blocks", picture, note)],
    )


def _rows(agreement: TaskAgreement) -> list[PairAgreement]:
    pairs = agreement.pairs
    return pairs if len(pairs) == 1 else [*pairs, agreement.mean]


def _names(pair: PairAgreement) -> str:
    return f"{pair.first} – {pair.second}" if pair.second else pair.first


def _figures(pair: PairAgreement) -> tuple[str, str, str]:
    return format_share(pair.equal), format_share(pair.by_chance), format_metric(pair.correlation)


def _draw_blocks(axes: Axes, agreement: TaskAgreement) -> None:
    mean = agreement.probabilities.mean(0).T
    kept = (agreement.probabilities > 0.5).sum(0).T.tolist()
    axes.imshow(mean.numpy(), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for path, row in enumerate(kept):
        for stage, count in enumerate(row):
            text = f"{count}/{len(agreement.runs)}\n{float(mean[path, stage]):.2f}"
            axes.text(stage, path, text, ha="center", va="center", fontsize=7.5, color=TEXT_COLOR)
    axes.set_title(plain_text(agreement.task), fontsize=9.5, weight="bold", color=TEXT_COLOR, loc="left")
    _label(
        axes, [str(stage + 1) for stage in range(mean.shape[1])], [f"Path {p}" for p in range(mean.shape[0])]
    )
    axes.set_xlabel("stage (in a block: runs that keep it, mean probability)", fontsize=8, color=LINE_COLOR)


def _draw_pairs(axes: Axes, agreement: TaskAgreement) -> None:
    runs = agreement.runs
    shares = [[1.0] * len(runs) for _ in runs]
    for pair in agreement.pairs:
        a, b = runs.index(pair.first), runs.index(pair.second)
        shares[a][b] = shares[b][a] = pair.equal
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1.3, aspect="equal")
    for a, row in enumerate(shares):
        for b, share in enumerate(row):
            text = format_share(share) if a != b else ""
            axes.text(b, a, text, ha="center", va="center", fontsize=7.5, color=TEXT_COLOR)
    names = [plain_text(run if len(run) <= 18 else f"…{run[-17:]}") for run in runs]
    _label(
        axes, [str(number + 1) for number in range(len(runs))], [f"{i + 1} {n}" for i, n in enumerate(names)]
    )
    axes.set_title("equal decisions", fontsize=9, color=LINE_COLOR)


def _label(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=8, colors=LINE_COLOR, length=0)
    axes.spines[:].set_visible(False)
