import io

import pytest
from rich.console import Console

from d2go_fbnetv5.engine.writers import ConsoleWriter
from d2go_fbnetv5.reports.models import metrics_tables


def shown(*things):
    out = io.StringIO()
    console = Console(file=out, width=120)
    for thing in things:
        console.print(thing)
    return out.getvalue()


@pytest.mark.parametrize("name", ["[red]b", "c[/x]", "[bold]", "[/]", "a[link=x]b"])
def test_names_that_look_like_markup_are_shown_as_they_are(name):
    metrics = {"AP": 0.5, f"AP-{name}": 0.25, "ema/AP": 0.5, f"ema/AP-{name}": 0.25}
    assert name in shown(*metrics_tables(metrics, f"model of family {name}", 3, 4, 5.0))


def test_losses_that_look_like_markup_are_shown_as_they_are():
    out = io.StringIO()
    writer = ConsoleWriter(Console(file=out, width=200), 0, 4)
    writer.write({"iteration": 0, "time": 0.1, "data_time": 0.1, "lr": 0.1, "loss_c[/x]": 1.0})
    assert "c[/x] 1.000" in out.getvalue()
