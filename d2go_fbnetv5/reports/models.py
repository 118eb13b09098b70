"""Tables at the end of a model's training: its metrics, those of its averaged weights, and the classes'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.utils.formatting import format_duration, format_metric, format_plural

_AVERAGED = "ema/"
_MOST_CLASSES = 40  # with more, metrics.json is where to look


def metrics_tables(
    metrics: Mapping[str, float], title: str, images: int, iterations: int, seconds: float
) -> list[RenderableType]:
    """Make a headline, a table of the whole data set's metrics, and one of each metric of classes, unless there are too
    many of these.

    Args:
        metrics: by name; "<metric>-<class>" is a class' own, "ema/<name>" one of the averaged weights. Names are shown
            as they are, square brackets too, which a console would take for its markup.
        images: in the test set; iterations, seconds: of training.
    """
    rows = {"model": {name: value for name, value in metrics.items() if not name.startswith(_AVERAGED)}}
    averaged = {
        name.removeprefix(_AVERAGED): value for name, value in metrics.items() if name.startswith(_AVERAGED)
    }
    if averaged:
        rows["averaged weights"] = averaged
    trained = f"{format_plural(iterations, 'iteration', 'iterations')} in {format_duration(seconds)}"
    overall = [name for name in rows["model"] if "-" not in name]
    headline = f"{title}: {format_plural(images, 'image', 'images')} after {trained}"
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in overall:
        table.add_column(Text(name), justify="right")
    for label, values in rows.items():
        table.add_row(label, *(format_metric(values.get(name)) for name in overall))
    classes: dict[str, list[str]] = {}
    for name in rows["model"]:
        if "-" in name:
            classes.setdefault(name.split("-", 1)[0], []).append(name)
    return [
        Text(headline),
        table,
        *(
            _class_table(metric, names, rows)
            for metric, names in classes.items()
            if len(names) <= _MOST_CLASSES
        ),
    ]


def _class_table(metric: str, names: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(Text(f"{metric} of"))
    for label in rows:
        table.add_column(label, justify="right")
    for name in names:
        table.add_row(Text(name.split("-", 1)[1]), *(format_metric(row.get(name)) for row in rows.values()))
    return table
