import pytest

from d2go_fbnetv5.utils.formatting import format_least, format_most


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [(4248583.0, "4.249e+06", "4.248e+06"), (3.0, "3", "3"), (0.12341, "0.1235", "0.1234")],
)
def test_a_bound_that_is_shown_is_one_that_holds(value, least, most):
    assert (format_least(value), format_most(value)) == (least, most)
    assert float(least) >= value >= float(most)
