import time

import pytest

from d2go_fbnetv5.export.measure import timing
from d2go_fbnetv5.export.measure.timing import Latency, measure_in_turns


def test_latency_is_the_median_and_the_range_between_the_quartiles():
    assert Latency.of([5.0, 1.0, 2.0, 100.0, 3.0]) == Latency(3.0, 3.0)  # quartiles 2 and 5
    assert Latency.of([4.0]) == Latency(4.0, 0.0)


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "_LEAST_SECONDS", 0.0)
    calls = []
    measured = measure_in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4)
    assert list(measured) == list("abc")
    warm_up = 3 * timing._WARM_UP
    assert "".join(calls[:warm_up]) == "aaabbbccc" and "".join(calls[warm_up:]) == "abc" * 4


def test_one_threads_time_is_its_own_and_that_on_the_wall_counts_waiting():
    def work():
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass

    calls = {"wait": lambda: time.sleep(0.02), "work": work}
    own = measure_in_turns(calls, 3)
    assert own["wait"].median < 2 < own["work"].median < 4
    wall = measure_in_turns(calls, 3, one_thread=False)
    assert wall["wait"].median > 19 and wall["work"].median > 1.9


def test_short_calls_are_measured_many_at_a_time():
    count = 0

    def call():
        nonlocal count
        count += 1

    measured = measure_in_turns({"short": call}, 2)
    assert count > 1000
    assert 0 < measured["short"].median < 0.01


def test_rounds_are_checked():
    with pytest.raises(ValueError, match="0 rounds; allowed is 1 or more"):
        measure_in_turns({}, 0)
