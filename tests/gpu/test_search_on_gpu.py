"""The search on a GPU: all precisions and algorithms, resuming, and its first losses beside the CPU's."""

import pytest
import torch
from small_runs import PRECISIONS, small_run

# What torch says of kernels on a GPU is no error of ours.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

OWN_IMAGES = ["SEARCH.SHARED_IMAGES", "False", *PRECISIONS["float16"]]
ALGORITHMS = {
    "1": ["SEARCH.ALGORITHM", "single_task", "SEARCH.TASKS", "['cls']"],
    "2, straight-through": ["SEARCH.ALGORITHM", "per_task_forward"],
    "2, REINFORCE": ["SEARCH.ALGORITHM", "per_task_forward", "SEARCH.ESTIMATOR", "reinforce"],
    "3": ["SEARCH.ALGORITHM", "shared_forward"],
    "random": ["SEARCH.ALGORITHM", "random"],
}


def assert_finite(model):
    bad = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    assert bad == []


def weights(run):
    return {name: value.detach().cpu().clone() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_search_learns_in_every_precision(precision, device, tmp_path):
    options = [*PRECISIONS[precision], "MODEL_EMA.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    run = small_run("search", device, tmp_path, options, steps=4)
    before = run.model.distribution.probs.detach().clone()
    run.train()
    assert_finite(run.model)
    assert not torch.equal(before, run.model.distribution.probs)
    if precision == "float32":
        assert all(
            value == value for name, value in run.conclude().items() if name.endswith(("top1", "mIoU"))
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_stays_finite_in_half_precision(algorithm, device, tmp_path):
    run = small_run("search", device, tmp_path, [*OWN_IMAGES, *ALGORITHMS[algorithm]], steps=4)
    run.train()
    assert_finite(run.model)


def test_the_first_losses_are_those_of_the_cpu(device, tmp_path, record_property):
    found = []
    for i, name in enumerate(("cpu", device)):
        run = small_run("search", name, tmp_path / str(i), PRECISIONS["float32"])
        batch = next(run.data.train_batches())
        # torchvision's detector samples its anchors by the device's own random numbers.
        losses = run.model.train()(batch)
        found.append(
            {key: float(loss.detach()) for key, loss in losses.items() if key in ("loss_cls", "loss_seg")}
        )
    worst = max(abs(found[1][key] / value - 1) for key, value in found[0].items())
    record_property("greatest difference", worst)
    assert worst < 1e-3


def resumed_and_whole(name, device, folder, options):
    run = small_run(name, device, folder, options, steps=4)
    run.train()
    run.close()
    whole = weights(run)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").unlink(missing_ok=True)
    run = small_run(name, device, folder, options, steps=4, resume=True)
    assert 0 < run.start_iteration < 4
    run.train()
    return weights(run), whole


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_resumed_search_has_the_very_numbers_where_kernels_repeat_theirs(precision, device, tmp_path):
    # Of classification alone, as torch has no such kernel for the gradient of cross-entropy over pixels.
    options = ["SEARCH.TASKS", "['cls']", "SOLVER.DETERMINISTIC", "True", *PRECISIONS[precision]]
    resumed, whole = resumed_and_whole("search", device, tmp_path, options)
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def test_a_resumed_search_of_all_tasks_is_close(device, tmp_path, record_property):
    resumed, whole = resumed_and_whole("search", device, tmp_path, PRECISIONS["float32"])
    apart = {
        name: float((value.double() - resumed[name].double()).abs().max()) for name, value in whole.items()
    }
    probs = apart["distribution.probs"]
    record_property("tensors that differ", sum(value > 0 for value in apart.values()))
    record_property("probabilities apart", probs)
    assert probs < 1e-3
