import copy
import importlib.util
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from d2go_fbnetv5 import MultitaskSearch, Supernet, Topology
from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.search import ALGORITHMS, CostRegularizer
from d2go_fbnetv5.tasks import DatasetInfo, build_task

_spec = importlib.util.spec_from_file_location("objectives", Path(__file__).with_name("objectives.py"))
objectives = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(objectives)


def searchable(shape, tasks, samples=1, **options):
    search = MultitaskSearch(
        objectives.MaskSupernet(*shape), tasks, samples_per_rank=samples, preprocess=len, **options
    ).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        search.distribution.probs.uniform_(0.1, 0.9, generator=generator)
    return search


def double_tasks(count, blocks, seed=0):
    tasks = objectives.random_tasks(count, blocks, seed, noise=0.0)
    for task in tasks:
        task.linear, task.pairwise = task.linear.double(), task.pairwise.double()
        task.forward = lambda features, batch, task=task: {
            "loss": task.objective(features["mask"].double()) * (1 + task.weight)
        }
    return tasks


def with_masks(search, masks):
    search.distribution.sample_proxy = lambda *_: masks
    return search


@pytest.mark.parametrize(("shape", "num_tasks"), [((2, 4), 3), ((2, 2), 2), ((1, 3), 1)])
@pytest.mark.parametrize("priced", [False, True])
def test_expectations_over_all_architectures_are_exact(shape, num_tasks, priced):
    """Enumerating q: E[surrogate's gradient] is the gradient of E_{p_t}[loss], E[weight loss] is the sum of
    E_{p_t}[loss_t] (section 3.3.3, 3.3.4)."""
    tasks = double_tasks(num_tasks, shape[0] * shape[1])
    cost = (
        CostRegularizer(torch.arange(1.0, shape[0] * shape[1] + 1).reshape(shape), 0.3, 2.0)
        if priced
        else None
    )
    search = searchable(shape, tasks, loss_window=0, self_normalize=False, cost=cost)
    if priced:
        cost.expectation = partial(cost.expectation, samples=4096)
    masks = objectives.all_masks(*shape)
    probs = search.distribution.probs

    log_prob = search.distribution.log_prob(masks)
    proxy = search.distribution.log_proxy(log_prob).exp().detach()
    assert proxy.sum().item() == pytest.approx(1, abs=1e-9)
    values = torch.stack([task.objective(masks) for task in tasks])
    price = 0 if cost is None else cost(masks)
    exact_gradient = torch.autograd.grad((log_prob.exp() * (values + price)).sum(), probs)[0]
    exact_loss = (log_prob.exp() * values).sum().item()

    gradient, loss = torch.zeros_like(probs), 0.0
    for mask, chance in zip(masks, proxy, strict=True):
        losses = with_masks(search, mask[None])([{}])
        surrogate = sum(value for key, value in losses.items() if key.startswith("loss_arch_"))
        gradient += chance * torch.autograd.grad(surrogate, probs)[0]
        loss += chance.item() * sum(losses[f"loss_{task.name}"].item() for task in tasks)
    # Prices alone are estimated from samples of their own.
    torch.testing.assert_close(gradient, exact_gradient, atol=5e-3 if priced else 1e-6, rtol=0)
    assert loss == pytest.approx(exact_loss, abs=1e-6)


def test_comparison_on_shared_images_leaves_the_expectation_as_it_is():
    """All pairs of masks, weighted by q(a) q(a'): each loss less the other's still has the gradient of E_{p_t}."""
    search = searchable(
        (2, 2), double_tasks(2, 4), samples=2, loss_window=0, self_normalize=False, shared_images=True
    )
    masks, probs = objectives.all_masks(2, 2), search.distribution.probs
    log_prob = search.distribution.log_prob(masks)
    proxy = search.distribution.log_proxy(log_prob).exp().detach()
    values = torch.stack([task.objective(masks) for task in search.tasks.values()])
    exact = torch.autograd.grad((log_prob.exp() * values).sum(), probs)[0]
    gradient = torch.zeros_like(probs)
    for i, j in itertools.product(range(len(masks)), repeat=2):
        losses = with_masks(search, masks[[i, j]])([{}])
        surrogate = sum(value for key, value in losses.items() if key.startswith("loss_arch_"))
        gradient += proxy[i] * proxy[j] * torch.autograd.grad(surrogate, probs)[0]
    torch.testing.assert_close(gradient, exact, atol=1e-6, rtol=0)


def test_images_are_shared_once_the_probabilities_learn():
    search = searchable((2, 2), double_tasks(1, 4), samples=2, shared_images=True, arch_warmup_iters=1)
    seen = []
    search.preprocess = seen.append
    for _ in range(2):
        search([{"id": i} for i in range(4)])
    assert [[sample["id"] for sample in part] for part in seen] == [[0, 1], [2, 3], [0, 1, 2, 3]]


def test_on_shared_images_a_head_is_run_once_for_each_network_that_it_can_tell_apart(monkeypatch):
    """The losses are those of each topology by itself; of 16 of one stage, Path 3's head sees 8 networks at most."""
    torch.manual_seed(0)
    supernet = Supernet("N", num_stages=1)
    task = build_task("cls", supernet.channels, DatasetInfo(class_names=("a", "b", "c")))
    search = MultitaskSearch(supernet, [task], samples_per_rank=16, shared_images=True)
    batch = [{"image": torch.randn(3, 64, 64), "class_label": i % 3} for i in range(4)]
    topologies = [Topology(mask) for mask in objectives.all_masks(1, 4)]
    calls = []
    monkeypatch.setattr(
        task, "forward", lambda *args, forward=task.forward: calls.append(1) or forward(*args)
    )
    found = search.run([batch] * 16, topologies).values[0]
    networks = len({topology.prune(task.in_features) for topology in topologies})
    assert len(calls) == networks == 2
    alone = [search.run([batch], [topology]).values[0, 0] for topology in topologies]
    torch.testing.assert_close(found, torch.stack(alone))


def test_weights_that_rest_stay_as_they_are_while_the_probabilities_learn():
    torch.manual_seed(0)
    supernet = Supernet("N", num_stages=1)
    task = build_task("cls", supernet.channels, DatasetInfo(class_names=("a", "b", "c")))
    search = MultitaskSearch(supernet, [task], samples_per_rank=4, shared_images=True, train_weights=False)
    groups = search.param_groups(lr=1.0, weight_decay=0.1)
    assert [group["name"] for group in groups] == ["arch"]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    before = {name: value.clone() for name, value in search.named_parameters()}
    for step in range(2):
        sum(search([{"image": torch.randn(3, 64, 64), "class_label": step}] * 4).values()).backward()
        optimizer.step()
    changed = [name for name, value in search.named_parameters() if not torch.equal(value, before[name])]
    assert changed == ["distribution.probs"]


def test_shared_images_take_their_difficulty_out():
    """A step's images move the losses of all its topologies alike by far more than the topologies do."""

    def found(shared):
        tasks = objectives.random_tasks(1, 8, seed=2, noise=0.0)
        generator = torch.Generator().manual_seed(5)
        difficulty = []

        def forward(features, batch, objective=tasks[0].objective):
            part = len(difficulty)
            new = not shared or part % 4 == 0
            difficulty.append(100 * torch.randn((), generator=generator) if new else difficulty[-1])
            return {"loss": objective(features["mask"]) + difficulty[-1] + tasks[0].weight}

        tasks[0].forward = forward
        search = objectives.run_search(tasks, (2, 4), 300, 4, 0.01, shared_images=shared)
        return objectives.quality(search, tasks, [objectives.optimum(tasks[0], 2, 4)], (2, 4))[0]

    assert found(shared=True) > 0.95
    assert found(shared=False) < 0.7


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through"])
def test_the_price_of_the_expected_cost_binds_above_the_target_alone(estimator):
    """By hand: costs 1, 3 of 4 at 0.5 and 0.75 come to 2.75 / 4; above the target each block is priced by its share."""
    costs = torch.tensor([[1.0, 3.0]])
    for target, slopes in ((0.5, [0.5, 1.5]), (0.7, [0.0, 0.0])):
        cost = CostRegularizer(costs, target, 2.0, expected=True)
        probs = torch.tensor([[[0.5, 0.75]]], requires_grad=True)
        price = cost(probs)
        assert price.item() == pytest.approx(max(0, 2 * (2.75 / 4 - target)))
        assert torch.autograd.grad(price.sum(), probs)[0].flatten().tolist() == slopes

        search = ALGORITHMS["per_task_forward"](
            objectives.MaskSupernet(1, 2),
            objectives.random_tasks(1, 2, seed=0, noise=0.0),
            samples_per_rank=2,
            cost=cost,
            loss_window=0,
            estimator=estimator,
            preprocess=lambda samples: None,
        )
        search.distribution.probs.data.copy_(probs.detach())
        gradients = []
        for search.cost in (cost, None):
            search.iteration = 0
            losses = search([{}, {}])
            gradients.append(torch.autograd.grad(sum(losses.values()), search.distribution.probs)[0])
        torch.testing.assert_close((gradients[0] - gradients[1]).flatten(), torch.tensor(slopes))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("target", [0.4, [0.4, 0.7]])
def test_expected_price_is_that_of_all_masks(target, absolute):
    cost = CostRegularizer(torch.arange(1.0, 7.0).reshape(2, 3), target, 3.0, absolute=absolute)
    probs = torch.rand((2, 2, 3), generator=torch.Generator().manual_seed(0)).requires_grad_()
    masks = objectives.all_masks(2, 3).float()
    chances = torch.where(masks > 0, probs[:, None], 1 - probs[:, None]).prod(dim=-1).prod(dim=-1)
    prices = cost(masks.expand(2, *masks.shape))
    exact = torch.autograd.grad((chances * prices).sum(), probs)[0]
    generator = torch.Generator().manual_seed(1)
    estimate = torch.autograd.grad(cost.expectation(probs, generator, 50_000).sum(), probs)[0]
    torch.testing.assert_close(estimate, exact, atol=5e-3, rtol=0)


def test_surrogates_reach_only_their_tasks_probabilities():
    search = searchable((2, 2), double_tasks(3, 4), samples=5)
    losses = search([{}] * 5)
    assert set(losses) == {f"loss_{kind}t{t}" for kind in ("", "arch_") for t in range(3)}
    for t in range(3):
        gradient = torch.autograd.grad(
            losses[f"loss_arch_t{t}"], search.distribution.probs, retain_graph=True
        )[0]
        assert gradient[t].abs().sum() > 0
        assert gradient[[i for i in range(3) if i != t]].abs().sum() == 0
        weights = list(search.tasks.parameters())
        assert all(
            g is None or g == 0
            for g in torch.autograd.grad(
                losses[f"loss_arch_t{t}"], weights, retain_graph=True, allow_unused=True
            )
        )
        assert not torch.autograd.grad(
            losses[f"loss_t{t}"], search.distribution.probs, retain_graph=True, allow_unused=True
        )[0]


def test_self_normalized_loss_is_the_weighted_mean():
    """Eq. 11 by hand: two blocks, one sample each kept and skipped."""
    tasks = double_tasks(2, 2)
    search = searchable((1, 2), tasks, samples=2)
    with torch.no_grad():
        search.distribution.probs.copy_(torch.tensor([[[0.8, 0.5]], [[0.2, 0.5]]]))
    masks = torch.tensor([[[True, True]], [[False, True]]])
    losses = with_masks(search, masks)([{}, {}])
    # p_0 = 0.4, 0.1 and p_1 = 0.1, 0.4; q = 0.25 for both; r_0 = 1.6, 0.4.
    first, second = (tasks[0].objective(m).item() for m in masks)
    assert losses["loss_t0"].item() == pytest.approx(0.8 * first + 0.2 * second)
    first, second = (tasks[1].objective(m).item() for m in masks)
    assert losses["loss_t1"].item() == pytest.approx(0.2 * first + 0.8 * second)


def test_probabilities_rest_during_warmup_and_are_projected_after():
    tasks = objectives.random_tasks(2, 4, 0, noise=0.1)
    frozen = objectives.run_search(tasks, (2, 2), steps=20, samples=4, lr=0.1, arch_warmup_iters=20)
    assert torch.equal(frozen.distribution.probs, torch.full((2, 2, 2), 0.5))
    moved = objectives.run_search(tasks, (2, 2), steps=200, samples=4, lr=1.0, prob_min=0.1)
    assert moved.distribution.probs.min() >= 0.1
    assert moved.distribution.probs.max() <= 0.9
    assert (moved.distribution.probs != 0.5).any()


def test_a_task_without_labels_neither_learns_nor_disturbs_the_others():
    class Unlabelled(objectives.QuadraticTask):
        def forward(self, features, batch):
            return {} if any("skip" in sample for sample in batch) else super().forward(features, batch)

    def build():
        shared = objectives.random_tasks(2, 4, 0, noise=0.0)
        shared[1].__class__ = Unlabelled
        return searchable((2, 2), shared, samples=3)

    masks = objectives.all_masks(2, 2)[[3, 5, 6]]
    full, partial = with_masks(build(), masks), with_masks(build(), masks)
    reference = full([{}] * 3)
    losses = partial([{}, {"skip": True}, {}])
    assert losses["loss_t0"].item() == pytest.approx(reference["loss_t0"].item())
    # The second task's estimate is that of the first and third sample alone.
    log_prob = full.distribution.log_prob(masks).detach()
    ratio = (log_prob - full.distribution.log_proxy(log_prob)).exp()[1][[0, 2]]
    values = full.tasks["t1"].objective(masks[[0, 2]])
    assert losses["loss_t1"].item() == pytest.approx(float((ratio * values).sum() / ratio.sum()), rel=1e-5)
    none = partial([{"skip": True}] * 3)
    assert none["loss_t1"].item() == 0
    assert none["loss_arch_t1"].item() == 0
    sum(none.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in partial.parameters() if p.grad is not None)


def test_checkpoint_holds_everything_a_resumed_search_needs():
    tasks = objectives.random_tasks(3, 8, 1, noise=0.0)

    def steps(search, count):
        optimizer = torch.optim.SGD(search.param_groups(lr=1.0), lr=1.0)
        for _ in range(count):
            optimizer.zero_grad()
            sum(search([{}] * 4).values()).backward()
            optimizer.step()
            search.after_step()

    def fresh():
        return MultitaskSearch(
            objectives.MaskSupernet(2, 4),
            copy.deepcopy(tasks),
            samples_per_rank=4,
            loss_window=5,
            seed=7,
            preprocess=len,
        )

    whole, first, second = fresh(), fresh(), fresh()
    steps(whole, 30)
    steps(first, 13)
    second.load_state_dict(first.state_dict())
    steps(second, 17)
    assert second.iteration == 30
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_sampling_differs_between_ranks_steps_and_seeds():
    search = searchable((6, 4), double_tasks(2, 24), samples=4)
    seen = set()
    for _ in range(10):
        search([{}] * 4)
        seen.update(search.diagnostics["topologies"])
    assert len(seen) > 35


def test_param_groups():
    head = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    head.name, head.in_features = "head", ("mask",)
    search = MultitaskSearch(objectives.MaskSupernet(2, 2), [head])
    groups = {g["name"]: g for g in search.param_groups(0.5, 0.01, weight_decay=1e-4, weight_decay_norm=0.0)}
    assert groups["arch"]["lr"] == pytest.approx(0.005)
    assert groups["arch"]["momentum"] == groups["arch"]["weight_decay"] == 0
    assert groups["arch"]["params"][0] is search.distribution.probs
    assert groups["norms"]["weight_decay"] == 0
    assert sum(len(g["params"]) for g in groups.values()) == len(list(search.parameters()))
    torch.optim.SGD(groups.values(), lr=0.5, momentum=0.9, nesterov=True).step()


def test_evaluation_merges_the_tasks_outputs():
    class Says(objectives.QuadraticTask):
        def forward(self, features, batch):
            return [{self.name: features["mask"]} for _ in batch]

    tasks = [Says(f"t{i}", torch.zeros(4), torch.zeros(4, 4)) for i in range(2)]
    search = searchable((2, 2), tasks).eval()
    outputs = search([{}, {}])
    assert len(outputs) == 2
    for name, topology in search.most_likely().items():
        assert Topology(outputs[0][name]) == topology


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_rank": 0}, "samples_per_rank is 0"),
        ({"samples_per_rank": 1, "shared_images": True}, "allowed with shared_images is 2 or more"),
        ({"init_prob": 1.5}, "init_prob is 1.5"),
        ({"prob_min": 0.7}, "prob_min is 0.7"),
        ({"loss_window": -1}, "loss_window is -1"),
        ({"cost": CostRegularizer(torch.ones(3, 2))}, r"cost is of \(3, 2\) blocks"),
        (
            {"cost": CostRegularizer(torch.ones(2, 2), [0.5] * 5)},
            "cost has 5 targets, allowed: one, or one for each of",
        ),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MultitaskSearch(objectives.MaskSupernet(2, 2), objectives.random_tasks(1, 4, 0, 0), **options)


def test_unusable_tasks_and_batches_are_named():
    task = objectives.random_tasks(1, 4, 0, 0)[0]
    with pytest.raises(ValueError, match="names of their own"):
        MultitaskSearch(objectives.MaskSupernet(2, 2), [task, task])
    with pytest.raises(ValueError, match="3 samples cannot be split into samples_per_rank = 4"):
        MultitaskSearch(objectives.MaskSupernet(2, 2), [task])([{}] * 3)


def _rank_gradients(rank, world_size, path, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world_size)
    search = _two_rank_search(samples=2)
    masks = objectives.all_masks(2, 2)[[1, 7, 9, 14]]
    for _ in range(3):
        gradients = _gradients(with_masks(search, masks[2 * rank : 2 * rank + 2]))
        for gradient in gradients:
            dist.all_reduce(gradient)
    if rank == 0:
        torch.save([g / world_size for g in gradients], results)
    dist.destroy_process_group()


def _two_rank_search(samples):
    return searchable((2, 2), objectives.random_tasks(2, 4, 5, noise=0.0), samples=samples)


def _gradients(search):
    search.zero_grad()
    sum(search([{}] * search.samples_per_rank).values()).backward()
    return [p.grad.clone() for p in search.parameters()]


def test_two_ranks_equal_one_with_twice_the_samples(tmp_path):
    """The averaged gradients of DDP's two ranks are those of one process that has all samples."""
    mp.spawn(_rank_gradients, (2, tmp_path / "store", tmp_path / "gradients.pt"), nprocs=2)
    search = with_masks(_two_rank_search(samples=4), objectives.all_masks(2, 2)[[1, 7, 9, 14]])
    for _ in range(3):
        expected = _gradients(search)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert any(g.abs().sum() > 0 for g in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "bound"), [(16, 0.93), (1, 0.85)])
def test_search_finds_known_optima(samples, bound):
    """24 blocks, 3 tasks, noise, the paper's 3125 steps and rate: the share of the way from the mean of random
    topologies to the optimum, averaged over tasks and 3 seeds."""
    shape, found = (6, 4), []
    for seed in range(3):
        tasks = objectives.random_tasks(3, 24, seed, noise=1.0)
        optima = [objectives.optimum(task, *shape) for task in tasks]
        search = objectives.run_search(tasks, shape, 3125, samples, lr=0.00096, seed=seed)
        found += objectives.quality(search, tasks, optima, shape)
    assert sum(found) / len(found) >= bound


@pytest.mark.slow
def test_short_search_beats_random_and_needs_the_importance_weight():
    shape = (2, 4)
    tasks = objectives.random_tasks(3, 8, 2, noise=0.2)
    optima = [objectives.optimum(task, *shape) for task in tasks]
    weighted = objectives.run_search(tasks, shape, 400, 8, lr=0.01, seed=1)
    plain = objectives.run_search(tasks, shape, 400, 8, lr=0.01, seed=1, importance_weighted=False)
    good = objectives.quality(weighted, tasks, optima, shape)
    poor = objectives.quality(plain, tasks, optima, shape)
    assert sum(good) / 3 > 0.9
    assert sum(good) > sum(poor)


def test_topologies_of_all_densities_keep_every_number_of_blocks_equally_often():
    search = searchable((2, 3), double_tasks(2, 6))
    drawn = search.distribution.draw_densities(14_000, torch.Generator().manual_seed(0))
    kept = drawn.masks.flatten(1).sum(dim=1)
    # Seven numbers, 2000 times each; six standard deviations are 250.
    assert (torch.bincount(kept, minlength=7) - 2000).abs().max() < 250
    assert (drawn.masks.double().mean(dim=0) - 0.5).abs().max() < 0.03
    assert drawn.topologies[5] == Topology(drawn.masks[5])
    assert torch.equal(drawn.ratios, torch.ones(2, 14_000))
    assert torch.equal(drawn.log_prob, search.distribution.log_prob(drawn.masks))


def test_topologies_of_all_densities_end_with_the_warm_up_and_count_alike_for_all_tasks():
    shape = (4, 4)
    search = searchable(shape, double_tasks(3, 16), 2, warmup_densities=True, arch_warmup_iters=1)
    plain = searchable(shape, double_tasks(3, 16), 2, arch_warmup_iters=1)
    batch = [{} for _ in range(4)]
    losses = search(batch)
    # Though the tasks' probabilities differ, the two samples count the same for each.
    assert all(search.diagnostics[f"ess/{name}"] == pytest.approx(2) for name in search.tasks)
    plain(batch)
    assert plain.diagnostics["topologies"] != search.diagnostics["topologies"]
    assert all(float(losses[f"loss_arch_{name}"].detach()) == 0 for name in search.tasks)
    for each in (search, plain):
        each.after_step()
        each(batch)
    assert plain.diagnostics["topologies"] == search.diagnostics["topologies"]


def test_depth_is_searched_jointly_with_the_three_tasks_of_the_paper():
    dataset = DigitScenes(size=64)
    supernet = Supernet("N", 1)
    small = {
        "cls": {"pool_channels": 16, "expansion": 1},
        "det": {"box_head_width": 16, "roi_output_size": 2},
    }
    tasks = [
        build_task(name, supernet.channels, dataset.info, **small.get(name, {}))
        for name in ("cls", "det", "seg", "depth")
    ]
    search = MultitaskSearch(supernet, tasks, samples_per_rank=2)
    losses = search([dataset[i] for i in range(4)])
    sum(losses.values()).backward()
    assert losses["loss_depth"].isfinite() and search.distribution.probs.grad[3].abs().sum() > 0
    head = search.tasks["depth"].predictor.weight
    assert head.grad.abs().sum() > 0
    with torch.no_grad():
        (output,) = search.eval()([dataset[0]])
    assert output["depth"].shape == output["sem_seg"].shape == (64, 64)
