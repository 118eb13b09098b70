import itertools
import os
import signal
import time

import pytest
import torch

from d2go_fbnetv5.data import DigitScenes, TrainTransform, build_eval_loader, build_train_loader
from d2go_fbnetv5.data.order import TrainOrder
from d2go_fbnetv5.utils.errors import LostProcessError


class Numbers(torch.utils.data.Dataset):
    """Sample i holds the number i; those in ``broken`` raise what they are given."""

    def __init__(self, length, broken=None):
        self.length, self.broken = length, broken or {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise self.broken[index]
        return {"image": torch.full((1,), index), "image_id": index}


def keep_seed(sample, seed):
    return {**sample, "seed": seed}


def ids(batches, count):
    return [[sample["image_id"] for sample in batch] for batch in itertools.islice(batches, count)]


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first
    )


def scenes_loader(**options):
    transform = TrainTransform(72, 56, flip=0.5)
    return build_train_loader(DigitScenes(size=64, num_images=11), transform, 4, seed=5, **options)


def test_every_pass_sees_every_sample_once_in_a_new_order():
    flat = [
        identity for batch in ids(build_train_loader(Numbers(7), None, 3, seed=0), 14) for identity in batch
    ]
    passes = [flat[first : first + 7] for first in range(0, 42, 7)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6


def test_order_and_augmentation_depend_on_the_seed():
    one, again, other = (build_train_loader(Numbers(50), keep_seed, 8, seed=seed) for seed in (0, 0, 1))
    first, second, third = (list(itertools.islice(loader, 9)) for loader in (one, again, other))
    assert first == second
    seeds = [[sample["seed"] for batch in batches for sample in batch] for batches in (first, third)]
    assert not set(seeds[0]) & set(seeds[1])
    # No two places of a run share their augmentation, also where the same image comes again.
    assert len(set(seeds[0])) == 72


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_resuming_at_an_iteration_gives_the_uninterrupted_run(start):
    whole = list(itertools.islice(scenes_loader(), 10))
    rest = list(itertools.islice(scenes_loader(start_iteration=start), 10 - start))
    for expected, found in zip(whole[start:], rest, strict=True):
        assert all(same(*pair) for pair in zip(expected, found, strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    torch.manual_seed(num_workers)
    expected = list(itertools.islice(scenes_loader(start_iteration=2), 5))
    found = list(itertools.islice(scenes_loader(start_iteration=2, num_workers=num_workers), 5))
    for pair in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        assert same(*pair)
        assert all(type(pair[0][key]) is type(pair[1][key]) for key in pair[0])


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_one_global_order(world_size):
    dataset = Numbers(20)
    whole = list(itertools.islice(build_train_loader(dataset, keep_seed, 12, seed=3), 8))
    parts = [
        itertools.islice(
            build_train_loader(dataset, keep_seed, 12 // world_size, 3, rank=rank, world_size=world_size), 8
        )
        for rank in range(world_size)
    ]
    joined = [list(itertools.chain(*batches)) for batches in zip(*parts, strict=True)]
    assert joined == whole


def test_loader_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(scenes_loader())
    list(build_eval_loader(Numbers(3), None, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 8])
def test_evaluation_sees_every_image_once(length, world_size):
    loaders = [
        build_eval_loader(Numbers(length), None, 3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [identity for loader in loaders for batch in ids(loader, None) for identity in batch]
    assert sorted(seen) == list(range(length))
    assert all(len(list(loader)) == len(loader) for loader in loaders)


def test_evaluation_loader_can_be_read_again_with_workers():
    loader = build_eval_loader(Numbers(5), None, 2, num_workers=1)
    assert ids(loader, None) == ids(loader, None) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_errors_arrive_as_they_were_raised(kind, num_workers):
    dataset = Numbers(4, {2: kind("image x.png is broken")})
    with pytest.raises(kind) as caught:
        list(build_eval_loader(dataset, None, 2, num_workers=num_workers))
    assert str(caught.value) == "image x.png is broken"
    if num_workers:
        assert "in __getitem__" in str(caught.value.__cause__)


def test_a_programming_error_in_a_worker_keeps_its_traceback():
    with pytest.raises(KeyError, match="oops") as caught:
        list(build_eval_loader(Numbers(2, {1: KeyError("oops")}), None, 2, num_workers=1))
    assert "in __getitem__" in str(caught.value.__cause__)


class TwoReasonsError(Exception):
    """Cannot be made again of its message alone, as pickle does."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def test_an_error_that_cannot_be_sent_is_told():
    with pytest.raises(RuntimeError, match="TwoReasonsError: dark and cold"):
        list(build_eval_loader(Numbers(2, {1: TwoReasonsError("dark", "cold")}), None, 2, num_workers=1))


class Deadly(Numbers):
    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_told_in_one_sentence():
    with pytest.raises(
        LostProcessError, match="NUM_WORKERS.*killed by SIGKILL, as the system does when memory"
    ):
        list(build_eval_loader(Deadly(4), None, 1, num_workers=1))


class SlowlyDying(Numbers):
    """Kills the process that reads it as the system does where that takes its time: files are closed first."""

    def __getitem__(self, index):
        if index == 2:
            os.closerange(3, 4096)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_has_closed_its_files_and_not_ended_yet_is_waited_for():
    with pytest.raises(LostProcessError, match="NUM_WORKERS.*killed by SIGKILL"):
        list(build_eval_loader(SlowlyDying(4), None, 1, num_workers=1))


def test_workers_start_in_no_time_and_leave_the_signals_alone():
    handler = signal.getsignal(signal.SIGCHLD)
    batches = build_eval_loader(Numbers(4), None, 2, num_workers=2)
    start = time.monotonic()
    assert next(iter(batches))
    # A Python of its own with torch takes seconds; so does a process that was spawned itself, if this is its way.
    assert time.monotonic() - start < 2
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_batches_of_many_tensors_need_few_open_files():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        loader = build_train_loader(Numbers(1000), None, 600, seed=0, num_workers=1)
        assert [len(batch) for batch in itertools.islice(loader, 3)] == [600] * 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_groups_are_never_mixed_and_keep_their_share():
    groups = [index % 10 in (1, 4, 7) for index in range(50)]
    order = TrainOrder(50, 4, seed=1, groups=groups)
    batches = list(itertools.islice(order, 125))
    kinds = [{groups[index] for _, index in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    # 500 samples are ten passes: nothing is left out, nothing favoured by more than a batch.
    counts = torch.bincount(torch.tensor([index for batch in batches for _, index in batch]), minlength=50)
    assert counts.min() >= 9 and counts.max() <= 11
    positions = [position for batch in batches for position, _ in batch]
    assert positions == list(range(500))


def test_detection_batches_have_one_orientation():
    wide, tall = DigitScenes(size=(32, 48), num_images=9), DigitScenes(size=(48, 32), num_images=7)
    part = torch.utils.data.Subset(tall, [1, 3, 5])
    mixed = torch.utils.data.ConcatDataset([wide, part])
    loader = build_train_loader(mixed, None, 4, seed=0, group_by_orientation=True)
    shapes = [
        {tuple(sample["image"].shape[1:]) for sample in batch} for batch in itertools.islice(loader, 12)
    ]
    assert all(len(shape) == 1 for shape in shapes)
    assert shapes.count({(48, 32)}) == 3


def test_groups_must_fit_the_set():
    with pytest.raises(ValueError, match=r"groups has shape \(1,\), expected \(4,\)"):
        TrainOrder(4, 2, 0, groups=[True])


@pytest.mark.parametrize("groups", [None, [index % 3 == 0 for index in range(20)], [True] * 20])
def test_order_resumes_and_splits_with_groups_too(groups):
    whole = list(itertools.islice(TrainOrder(20, 6, 0, groups=groups), 30))
    assert list(itertools.islice(TrainOrder(20, 6, 0, start_iteration=17, groups=groups), 13)) == whole[17:]
    parts = [TrainOrder(20, 2, 0, rank, 3, groups=groups) for rank in range(3)]
    assert [sum((part.batch(k) for part in parts), []) for k in range(30)] == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, it must be 0 to 1"),
        ({"start_iteration": -1}, "start_iteration is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"group_by_orientation": True}, "a Numbers does not know its images' sizes"),
    ],
)
def test_bad_training_options(options, message):
    with pytest.raises(ValueError, match=message):
        build_train_loader(Numbers(4), None, **{"batch_size": 2, "seed": 0, **options})


def test_bad_evaluation_options_and_empty_set():
    with pytest.raises(ValueError, match="batch_size is 0"):
        build_eval_loader(Numbers(4), None, 0)
    with pytest.raises(ValueError, match="rank is 1, it must be 0 to 0"):
        build_eval_loader(Numbers(4), None, 1, rank=1)
    with pytest.raises(ValueError, match="length is 0"):
        build_train_loader(Numbers(0), None, 2, seed=0)
