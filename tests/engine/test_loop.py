import itertools

import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.engine.hooks import AfterStepHook, EvalHook, ScheduleHook
from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.engine.nonfinite import describe_topology, first_nonfinite
from d2go_fbnetv5.engine.schedule import build_schedule
from d2go_fbnetv5.engine.writers import RecordHook
from d2go_fbnetv5.utils.errors import InputError, NonFiniteError


class Line(nn.Module):
    """loss_a = w * x summed over the batch, loss_b = w^2."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([weight]))
        self.projected = 0
        self.diagnostics = {}

    def forward(self, batch):
        a = sum((self.w * sample["x"]).sum() for sample in batch)
        self.diagnostics = {"half": a.detach() / 2, "matrix": torch.zeros(2, 2)}
        return {"loss_a": a, "loss_b": (self.w**2).sum()}

    def after_step(self):
        self.projected += 1
        with torch.no_grad():
            self.w.clamp_(-0.5, 1.0)


def batches(*values):
    return ([{"x": torch.tensor(float(v))}] for v in values)


def make_loop(model, data, steps, lr=0.1, **kwargs):
    return TrainLoop(model, torch.optim.SGD(model.parameters(), lr=lr), data, steps, **kwargs)


def test_a_step_is_gradient_descent_on_the_sum_of_losses():
    model = Line()
    make_loop(model, batches(3.0, 1.0), 2).run()
    first = 1.0 - 0.1 * (3.0 + 2 * 1.0)
    assert model.w.item() == pytest.approx(first - 0.1 * (1.0 + 2 * first))


def test_hooks_run_in_order_and_close_when_a_step_fails():
    calls = []

    class Recorder(Hook):
        def before_train(self, loop):
            calls.append("before_train")

        def before_step(self, loop):
            calls.append(f"before {loop.iteration}")

        def after_step(self, loop):
            calls.append(f"after {loop.iteration}")

        def after_train(self, loop):
            calls.append("after_train")

        def close(self):
            calls.append("close")

    make_loop(Line(), batches(0, 0), 4, start_iteration=2, hooks=[Recorder()]).run()
    assert calls == ["before_train", "before 2", "after 2", "before 3", "after 3", "after_train", "close"]
    calls.clear()
    with pytest.raises(StopIteration):
        make_loop(Line(), batches(0), 2, hooks=[Recorder()]).run()
    assert calls == ["before_train", "before 0", "after 0", "before 1", "close"]


def test_schedule_keeps_the_ratio_of_group_rates():
    model = Line()
    other = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [model.w], "lr": 1e-3}, {"params": [other], "lr": 1e-5}])
    rates = []

    class Reader(Hook):
        def after_step(self, loop):
            rates.append([group["lr"] for group in loop.optimizer.param_groups])

    schedule = ScheduleHook(build_schedule("WarmupMultiStepLR", 4, steps=(2,)), [1e-3, 1e-5])
    TrainLoop(model, optimizer, batches(0, 0, 0, 0), 4, hooks=[schedule, Reader()]).run()
    assert rates == [pytest.approx(r) for r in ([1e-3, 1e-5], [1e-3, 1e-5], [1e-4, 1e-6], [1e-4, 1e-6])]


def test_the_models_own_projection_follows_each_step():
    model = Line()
    make_loop(model, batches(100, 100), 2, hooks=[AfterStepHook()]).run()
    assert model.projected == 2
    assert model.w.item() == -0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_before_the_weights_change(bad):
    model = Line()
    data = batches(0.0, bad)
    with pytest.raises(NonFiniteError, match=r"iteration 1: loss_a is (nan|inf)$"):
        make_loop(model, data, 3).run()
    assert model.w.item() == pytest.approx(0.8)  # the step before is done, this one is not


def test_a_bad_loss_names_the_topologies():
    model = Line()
    forward = model.forward

    def sampling(batch):
        losses = forward(batch)
        model.diagnostics["topologies"] = [Topology.named("linear", stages=2), Topology.full(2)]
        return losses

    model.forward = sampling
    with pytest.raises(NonFiniteError, match=r"0123\|0123"):
        make_loop(model, batches(float("nan")), 1).run()


def test_topologies_are_described_by_the_paths_of_each_stage():
    assert describe_topology(Topology([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])) == "03||1"


def test_first_nonfinite_sees_weights_and_statistics_but_not_other_buffers():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model.register_buffer("window", torch.tensor([float("nan")]))
    assert first_nonfinite(model) is None
    model[1].running_var.fill_(float("inf"))
    assert first_nonfinite(model) == "1.running_var"
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert first_nonfinite(model) == "0.weight"


def test_records_are_means_since_the_last_one_and_carry_rates_and_extras():
    records = []

    class Memory:
        def write(self, record):
            records.append(record)

        def close(self):
            pass

    hook = RecordHook([Memory()], period=2, extra=lambda: {"probs/cls": [[0.5]]})
    make_loop(Line(0.0), batches(2, 4, 6), 3, lr=0.0, hooks=[hook]).run()
    assert [r["iteration"] for r in records] == [1, 2]
    assert records[0]["loss_b"] == 0.0 and records[0]["lr"] == 0.0
    assert records[0]["probs/cls"] == [[0.5]]
    assert "half" in records[0] and "matrix" not in records[0]
    assert all(records[0][key] >= 0 for key in ("time", "data_time"))


def test_record_means():
    records = []
    hook = RecordHook([], period=2)
    hook.writers = [type("Memory", (), {"write": lambda _, r: records.append(r), "close": lambda _: None})()]
    make_loop(Line(1.0), batches(2, 4, 6), 3, lr=0.0, hooks=[hook]).run()
    assert [r["loss_a"] for r in records] == [3.0, 6.0]
    assert [r["half"] for r in records] == [1.5, 3.0]


def test_each_step_is_seeded_by_its_number():
    class Noise(Line):
        def forward(self, batch):
            self.drawn = torch.rand(())
            return {"loss": self.w.sum()}

    def draws(start):
        model = Noise()
        drawn = []
        reader = type(
            "Reader", (Hook,), {"after_step": lambda _, loop: drawn.append(loop.model.drawn.item())}
        )()
        make_loop(model, batches(*[0] * 4), 4, start_iteration=start, hooks=[reader], seed=5).run()
        return drawn

    assert draws(0)[2:] == draws(2)
    assert len(set(draws(0))) == 4


def test_evaluation_comes_every_period_but_not_at_the_end():
    model, evaluated = Line(), []

    def evaluate(iteration):
        model.eval()
        evaluated.append(iteration)

    make_loop(model, batches(*itertools.repeat(0, 6)), 6, hooks=[EvalHook(2, evaluate)]).run()
    assert evaluated == [1, 3]
    assert model.training


class Weighed(nn.Module):
    """The mean over a batch of (w . x)^2, without anything that sees a batch as a whole."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 5))

    def forward(self, batch):
        return {"loss": torch.stack([(self.w @ sample["x"]).square() for sample in batch]).mean()}


@pytest.mark.parametrize("clip", [None, lambda weights: nn.utils.clip_grad_norm_(list(weights), 0.3)])
def test_gradients_of_parts_are_those_of_the_whole_batch(clip):
    torch.manual_seed(0)
    data = [[{"x": torch.randn(5)} for _ in range(12)] for _ in range(3)]
    found = []
    for parts in (1, 4):
        model = Weighed()
        loop = make_loop(model, iter(data), 3, clip_gradients=clip, grad_accum=parts)
        loop.run()
        found.append((model.w.detach(), loop.losses["loss"]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_too_little_memory_is_one_sentence_that_says_what_to_lower():
    class Large(Line):
        def forward(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(
        InputError, match=r"for iteration 0: lower SOLVER\.IMS_PER_BATCH, or raise SOLVER\.GRAD_ACCUM"
    ):
        make_loop(Large(), batches(0), 1).run()
