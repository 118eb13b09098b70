"""Tasks that are added to a finished search."""

import pytest
import torch

from d2go_fbnetv5 import Supernet, Topology
from d2go_fbnetv5.arch import block_costs
from d2go_fbnetv5.search import AdaptingSearch, AdditionSearch, CostRegularizer, MultitaskSearch
from d2go_fbnetv5.search.addition import JUDGED_STEPS, SHRINKAGE
from d2go_fbnetv5.tasks import DatasetInfo, build_task

INFO = DatasetInfo(class_names=("a", "b", "c"), sem_seg_names=("p", "q"))
SIDE = 64


def parts(names):
    torch.manual_seed(0)
    supernet = Supernet("N", num_stages=1)
    return supernet, [build_task(name, supernet.channels, INFO) for name in names]


def adding(warmup, kind=AdditionSearch, **options):
    """seg is added to cls, whose probabilities are sure of two blocks."""
    search = kind(
        *parts(["cls", "seg"]), num_earlier=1, arch_warmup_iters=warmup, samples_per_rank=2, **options
    )
    with torch.no_grad():
        search.distribution.probs[0] = torch.tensor([[0.98, 0.02, 0.02, 0.98]])
    return search


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.rand((3, SIDE, SIDE), generator=generator),
            "class_label": i % 3,
            "sem_seg": (torch.rand((SIDE, SIDE), generator=generator) * 2).long(),
            "height": SIDE,
            "width": SIDE,
        }
        for i in range(4)
    ]


def run(search, steps):
    """Train as the loop does; return each step's losses."""
    optimizer = torch.optim.SGD(search.param_groups(lr=0.1, arch_lr_factor=1.0, weight_decay=0.1), lr=0.1)
    found = []
    for step in range(steps):
        losses = search(batch(step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        search.after_step()
        found.append({name: float(loss.detach()) for name, loss in losses.items()})
    return found


def old(search):
    state = {k: v for k, v in search.state_dict().items() if k.startswith(("supernet.", "tasks.cls."))}
    return {k: v.clone() for k, v in state.items()} | {"probs": search.distribution.probs[0].detach().clone()}


def test_nothing_of_the_finished_search_changes_by_a_bit():
    cost = CostRegularizer(block_costs("N", (SIDE, SIDE)).matrix(1), 0.0, 1.0)
    search = adding(3, shared_images=True, cost=cost, prob_min=0.1)  # in which the old ones would not stay
    before, head = old(search), search.tasks["seg"].state_dict()
    head = {name: value.clone() for name, value in head.items()}
    losses = run(search, 6)
    assert all(step.keys() == {"loss_seg", "loss_arch_seg"} for step in losses)
    after = old(search)
    assert before.keys() == after.keys() and len(before) > 100
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(
        torch.equal(value, head[name])
        for name, value in search.tasks["seg"].named_parameters()
        if value.dim() > 1
    )
    assert not torch.equal(search.distribution.probs[1], search.distribution.probs[0])


def test_the_head_learns_first_and_then_the_probabilities_alone():
    search = adding(2, shared_images=True)
    run(search, 1)
    first, head = search.distribution.probs[1].clone(), new_head(search)
    assert torch.equal(first, torch.full_like(first, 0.5))
    run(search, 1)
    begun, trained = search.distribution.probs[1].clone(), new_head(search)
    assert any(not torch.equal(a, b) for a, b in zip(head, trained, strict=True))
    run(search, 6)
    assert all(torch.equal(a, b) for a, b in zip(trained, new_head(search), strict=True))
    assert not torch.equal(begun, search.distribution.probs[1])


def new_head(search):
    return [value.clone() for value in search.tasks["seg"].parameters()]


@pytest.mark.parametrize("learns", [False, True])
def test_blocks_that_no_new_head_sees_are_not_run_and_change_nothing(learns):
    """seg reads Path 2, whose block comes last; that of Path 3 beside it feeds nothing."""
    search = adding(1, shared_images=True)
    search.iteration = int(learns)
    run_of = []
    for path, block in search.supernet.stages["stage1"].items():
        block.register_forward_hook(lambda *_, path=path: run_of.append(path))
    topologies = [Topology([[1, 0, 1, 1]]), Topology([[0, 0, 1, 0]])]
    parts = [batch()] * 2 if learns else [batch(0), batch(1)]
    found = search.run(parts, topologies)
    assert run_of == (["path2"] if learns else ["path2", "path2"])
    expected = MultitaskSearch.run(search, parts, topologies)
    assert torch.equal(found.values, expected.values) and len(run_of) > 3


def test_of_one_earlier_task_the_probabilities_start_half_way_to_its_own():
    search = adding(1)
    run(search, 1)
    expected = 0.5 + SHRINKAGE * (search.distribution.probs[0] - 0.5)
    torch.testing.assert_close(search.distribution.probs[1], expected)


def test_earlier_tasks_count_by_what_their_modes_lose_under_the_new_head():
    """By hand: sums of losses 2 and 4 have the deviation 1 around 3, so that the shares are as e^1 to e^-1."""
    supernet, tasks = parts(["cls", "seg"])
    third = build_task("seg", supernet.channels, INFO)
    third.name = "other"
    search = AdditionSearch(supernet, [*tasks, third], num_earlier=2, arch_warmup_iters=1)
    with torch.no_grad():
        search.distribution.probs[0], search.distribution.probs[1] = 0.9, 0.1
    search.mode_losses.copy_(torch.tensor([[2.0, 4.0]]))
    search._start()
    share = torch.tensor([1.0, -1.0]).softmax(0)[0]
    expected = 0.5 + SHRINKAGE * (share * 0.9 + (1 - share) * 0.1 - 0.5)
    torch.testing.assert_close(search.distribution.probs[2], expected.expand(1, 4))


def test_modes_are_tried_in_the_last_steps_of_the_warm_up_alone(monkeypatch):
    search = adding(JUDGED_STEPS + 2)
    calls = []
    monkeypatch.setattr(search, "_try_modes", lambda samples: calls.append(search.iteration))
    monkeypatch.setattr(
        MultitaskSearch, "step", lambda *_: ({"loss": search.distribution.probs.sum() * 0}, {})
    )
    for _ in range(JUDGED_STEPS + 4):
        search(batch())
    assert calls == list(range(2, JUDGED_STEPS + 2))


def test_half_of_the_warm_ups_topologies_are_the_earlier_tasks_own():
    """Of blocks with 0.98 and 0.02 in one half and 0.5 in the other, 0.74 and 0.26 of the samples have them."""
    search = adding(1)
    drawn = search.draw(4000, torch.Generator().manual_seed(0))
    shares = torch.tensor([topology.mask for topology in drawn.topologies]).double().mean(0)
    expected = torch.tensor([[0.74, 0.26, 0.26, 0.74]], dtype=torch.double)
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    mode = sum(topology == Topology([[1, 0, 0, 1]]) for topology in drawn.topologies) / 4000
    assert mode == pytest.approx(0.5 * 0.98**4 + 0.5 / 16, abs=0.03)


def test_where_the_weights_adapt_the_earlier_tasks_losses_are_in_each_step_and_their_probabilities_rest():
    search = adding(2, AdaptingSearch, shared_images=True)
    before = old(search)
    assert all(
        step.keys() == {"loss_cls", "loss_seg", "loss_arch_seg"}
        and all(step[f"loss_{t}"] for t in ("cls", "seg"))
        for step in run(search, 4)
    )
    after = old(search)
    assert torch.equal(before["probs"], after["probs"])
    assert not torch.equal(search.distribution.probs[1], before["probs"])
    parts = ("supernet.stage0", "supernet.stages", "tasks.cls.")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    assert any(name.startswith("supernet.") and name.endswith("running_mean") for name in changed)
    assert search.kept == ("supernet.", "tasks.cls.")


@pytest.mark.parametrize("learns", [False, True])
def test_an_earlier_tasks_losses_count_by_its_own_probabilities(monkeypatch, learns):
    """By hand: two topologies, p_cls(a) of Eq. 4, q the mean of what they are drawn from, r = p / q, and Eq. 11."""
    search = adding(1, AdaptingSearch, shared_images=True)
    if learns:
        run(search, 1)
    first = search.distribution.probs[0].detach().clone()
    other = search.distribution.probs[1].detach().clone() if learns else torch.full_like(first, 0.5)
    seen = {}
    original = AdaptingSearch.losses_of

    def losses_of(self, names, parts, features):
        seen[names] = original(self, names, parts, features)
        return seen[names]

    monkeypatch.setattr(AdaptingSearch, "losses_of", losses_of)
    found = search(batch())
    masks = torch.tensor([topology.mask for topology in search.diagnostics["topologies"]]).float()

    def likelihood(probs):
        return torch.where(masks > 0, probs, 1 - probs).prod(dim=2).prod(dim=1)

    ratios = likelihood(first) / (0.5 * likelihood(first) + 0.5 * likelihood(other))
    expected = (ratios / ratios.sum() * seen[("cls",)].values[0]).sum()
    torch.testing.assert_close(found["loss_cls"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [AdditionSearch, AdaptingSearch])
def test_a_run_that_is_taken_up_in_either_phase_ends_the_same(kind):
    whole, stopped = adding(3, kind, shared_images=True), adding(3, kind, shared_images=True)
    run(whole, 5)
    for steps in (2, 1, 2):  # plain SGD without momentum has no state
        seen = stopped.iteration
        resumed = adding(3, kind, shared_images=True)
        resumed.load_state_dict(stopped.state_dict())
        optimizer = torch.optim.SGD(
            resumed.param_groups(lr=0.1, arch_lr_factor=1.0, weight_decay=0.1), lr=0.1
        )
        for step in range(seen, seen + steps):
            optimizer.zero_grad()
            sum(resumed(batch(step)).values()).backward()
            optimizer.step()
            resumed.after_step()
        stopped = resumed
    assert all(torch.equal(value, stopped.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(("num_earlier", "warmup"), [(0, 1), (2, 1), (1, 0)])
def test_there_must_be_earlier_tasks_new_ones_and_a_warm_up(num_earlier, warmup):
    with pytest.raises(ValueError, match="allowed: 1 or more"):
        AdditionSearch(*parts(["cls", "seg"]), num_earlier=num_earlier, arch_warmup_iters=warmup)
