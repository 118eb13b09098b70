"""A step must not read values back from the device: on a GPU each such read waits for all that was asked before."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from d2go_fbnetv5 import Supernet
from d2go_fbnetv5.engine.loop import TrainLoop
from d2go_fbnetv5.engine.writers import RecordHook
from d2go_fbnetv5.search import CostRegularizer, MultitaskSearch
from d2go_fbnetv5.tasks import DatasetInfo, batch_images, build_task

INFO = DatasetInfo(class_names=("a", "b"), sem_seg_names=("c", "d"))
# Operators whose result, or whose result's shape, the host has to know at once.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten.equal")


class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if any(name in str(operator) for name in READS):
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def search():
    torch.manual_seed(0)
    supernet = Supernet("N", num_stages=2).train()
    options = {"cls": {"pool_channels": 16, "expansion": 1}, "seg": {}}
    tasks = [build_task(name, supernet.channels, INFO, **option) for name, option in options.items()]
    cost = CostRegularizer(torch.ones(2, 4), 0.5, 1.0)
    return MultitaskSearch(
        supernet,
        tasks,
        samples_per_rank=2,
        cost=cost,
        preprocess=lambda b: batch_images(b, [0.0] * 3, [1.0] * 3),
    )


def batch():
    label_map = torch.randint(0, 2, (64, 64))
    sample = {
        "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
        "class_label": 1,
        "sem_seg": label_map,
    }
    return [dict(sample) for _ in range(4)]


def test_a_step_of_the_search_reads_nothing_back(search):
    samples = batch()
    with Reads() as reads:
        losses = search(samples)
        sum(losses.values()).backward()
        search.after_step()
    assert reads.found == []


class _Loop:
    """As much of a training loop as `RecordHook` sees."""

    def __init__(self, search, losses):
        self.model, self.losses = search, {name: loss.detach() for name, loss in losses.items()}
        self.step_time = self.data_time = 0.0
        self.iteration, self.max_iter = 0, 100
        self.optimizer = torch.optim.SGD(search.parameters(), 0.1)


def test_losses_are_read_when_they_are_written(search):
    loop, written = _Loop(search, search(batch())), []
    writer = type("Writer", (), {"write": lambda self, record: written.append(record)})()
    hook = RecordHook([writer], period=3)
    with Reads() as reads:
        for loop.iteration in range(2):
            hook.after_step(loop)
        assert (reads.found, written) == ([], [])
        loop.iteration = 2
        hook.after_step(loop)
    assert reads.found
    assert written[0]["loss_cls"] == pytest.approx(float(loop.losses["loss_cls"]))


def test_a_rehearsal_of_the_later_phase_leaves_no_trace(search):
    search.arch_warmup_iters, search.shared_images = 5, True
    asked = []
    search.register_forward_pre_hook(lambda module, _: asked.append(module.arch_is_on))
    optimizer = torch.optim.SGD(search.param_groups(0.1), lr=0.1)
    samples = batch()
    loop = TrainLoop(search, optimizer, iter([samples]), 1)
    before = {name: value.clone() for name, value in search.state_dict().items()}
    loop.rehearse()
    assert asked == [True] and search.iteration == 0 and search.diagnostics == {}
    assert all(torch.equal(value, before[name]) for name, value in search.state_dict().items())
    assert all(weight.grad is None for weight in search.parameters())
    assert next(loop.data) is samples


def test_distributed_training_goes_on_after_a_rehearsal(search, tmp_path):
    search.arch_warmup_iters, search.shared_images = 5, True
    optimizer = torch.optim.SGD(search.param_groups(0.1), lr=0.1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        distributed = torch.nn.parallel.DistributedDataParallel(search, find_unused_parameters=True)
        loop = TrainLoop(distributed, optimizer, iter([batch()]), 1)
        loop.rehearse()
        loop.step()
    finally:
        dist.destroy_process_group()
    # The rehearsal has used weights that the step has not.
    assert any(weight.grad is None for weight in search.supernet.parameters())
    assert any(weight.grad is not None for weight in search.supernet.parameters())
