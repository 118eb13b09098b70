import math

import pytest

from d2go_fbnetv5.reports.history import running_mean, series, thin
from d2go_fbnetv5.reports.plots import curves_figure, losses_figure, probabilities_figure
from d2go_fbnetv5.utils.formatting import format_count, format_duration, format_metric, format_share


def test_series_is_in_order_and_the_last_line_counts():
    history = [
        {"iteration": 2, "x": 1.0},
        {"iteration": 1, "x": 5.0},
        {"iteration": 2, "x": 3.0, "y": 1},
        {"iteration": 3, "x": math.nan},
        {"iteration": 4, "x": None},
        {"note": "no iteration"},
    ]
    assert series(history, "x") == ([1, 2], [5.0, 3.0])
    assert series(history, "z") == ([], [])


@pytest.mark.parametrize(("count", "most"), [(0, 5), (3, 5), (5, 5), (6, 5), (1000, 7)])
def test_thin_keeps_first_and_last(count, most):
    kept = thin(count, most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_running_mean():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert running_mean([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (726.4e6, "726M"),
        (1.36e9, "1.36G"),
        (22.0e6, "22.0M"),
        (999.6e6, "1.00G"),
        (99.96e3, "100K"),
        (0, "0"),
        (12, "12"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_counts(value, text):
    assert format_count(value) == text


def test_other_numbers():
    assert format_metric(0.12345) == "0.123"
    assert format_metric(math.nan) == "–"
    assert format_share(0.625) == "62%"
    assert [format_duration(s) for s in (48.4, 60, 312, 36_180)] == [
        "48 s",
        "1 min 0 s",
        "5 min 12 s",
        "10 h 3 min",
    ]


def test_probabilities_figure_has_a_curve_for_every_block():
    history = [{"iteration": i, "probs/a": [[0.5] * 4] * 3, "probs/b": [[0.25] * 4] * 3} for i in range(600)]
    figure = probabilities_figure(history, ["a", "b"])
    assert len(figure.axes) == 2 * 4
    for axes in figure.axes:
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 3
        assert curves[0].get_xdata()[-1] == 599


def test_missing_curves():
    with pytest.raises(ValueError, match="of b in the history"):
        probabilities_figure([{"iteration": 0, "probs/a": [[0.5] * 4]}], ["a", "b"])
    assert losses_figure([], ["a"]) is None
    assert curves_figure([{"iteration": 1}], ["a"], "ess", "samples") is None
