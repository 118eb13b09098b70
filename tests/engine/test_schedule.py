import pytest

from d2go_fbnetv5.engine.schedule import build_schedule


def test_multi_step_with_linear_warmup():
    schedule = build_schedule(
        "WarmupMultiStepLR", 100, steps=(30, 60), gamma=0.1, warmup_iters=10, warmup_factor=0.5
    )
    at = {i: schedule(i / 100) for i in (0, 5, 10, 29, 30, 59, 60, 99)}
    assert at[0] == pytest.approx(0.5) and at[5] == pytest.approx(0.75)
    assert [at[i] for i in (10, 29, 30, 59, 60, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_papers_schedule_changes_exactly_at_its_step():
    schedule = build_schedule("WarmupMultiStepLR", 9375, steps=(3125,))
    assert [schedule(i / 9375) for i in (0, 3124, 3125, 9374)] == pytest.approx([1, 1, 0.1, 0.1])


def test_steps_beyond_the_end_are_ignored_with_a_warning(caplog):
    schedule = build_schedule("WarmupMultiStepLR", 10, steps=(20,))
    assert schedule(0.95) == 1.0
    assert "ignored" in caplog.text


def test_cosine_ends_at_its_end_factor_and_decays_count():
    cosine = build_schedule("WarmupCosineLR", 100, end_factor=0.2)
    assert [cosine(0.0), cosine(0.5), cosine(1.0)] == pytest.approx([1.0, 0.6, 0.2])
    fixed = build_schedule("WarmupStepWithFixedGammaLR", 90, gamma=0.5, num_decays=2)
    assert [fixed(i / 90) for i in (0, 29, 30, 60)] == pytest.approx([1, 1, 0.5, 0.25])


def test_polynomial_decay_does_not_go_below_its_end():
    poly = build_schedule("WarmupPolyLR", 100, power=0.9, constant_ending=0.1)
    assert [poly(0.0), poly(0.5), poly(0.99)] == pytest.approx([1.0, 0.5**0.9, 0.1])


def test_constant_warmup_and_warmup_for_all_of_training():
    constant = build_schedule(
        "WarmupCosineLR", 100, warmup_iters=10, warmup_factor=0.1, warmup_method="constant"
    )
    assert constant(0.05) == pytest.approx(0.1)
    whole = build_schedule("WarmupMultiStepLR", 10, warmup_iters=50, warmup_factor=0.0)
    assert whole(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("kwargs", [{"name": "Step"}, {"warmup_method": "burn", "warmup_iters": 2}])
def test_unknown_names_list_those_known(kwargs):
    with pytest.raises(ValueError, match="allowed"):
        build_schedule(**{"name": "WarmupCosineLR", "max_iter": 10, **kwargs})
