"""The average of a model's weights: hand-computed, and updated after each step."""

import pytest
import torch
from torch import nn

from d2go_fbnetv5.engine.ema import EMA, EMAHook
from d2go_fbnetv5.engine.loop import TrainLoop


class Line(nn.Module):
    """The loss is w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def forward(self, batch):
        return {"loss": self.w.sum()}


def test_ema_equals_hand_computation_and_copies_integers():
    model = Line()
    model.register_buffer("mean", torch.tensor([1.0]))
    model.register_buffer("count", torch.tensor(1))
    ema = EMA(model, decay=0.9)
    for weight, mean, count in ((2.0, 3.0, 2), (4.0, 5.0, 3)):
        with torch.no_grad():
            model.w.fill_(weight)
            model.mean.fill_(mean)
            model.count.fill_(count)
        ema.update_parameters(model)
    assert ema.module.w.item() == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 4.0)
    assert ema.module.mean.item() == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 3.0) + 0.1 * 5.0)
    assert ema.module.count.item() == 3


def test_statistics_are_copied_where_they_are_not_to_be_averaged():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.5, include_buffers=False)
    model.running_mean.fill_(8.0)
    ema.update_parameters(model)
    assert ema.module.running_mean.tolist() == [8.0, 8.0]


def test_the_hook_follows_the_weights_step_by_step():
    model = Line()
    ema = EMA(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    TrainLoop(model, optimizer, iter([[], []]), 2, hooks=[EMAHook(ema)]).run()
    # 1 falls by 0.4 a step: 0.6, 0.2; their averages are 0.8, then 0.5.
    assert model.w.item() == pytest.approx(0.2)
    assert ema.module.w.item() == pytest.approx(0.5)


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match=r"MODEL_EMA\.DECAY"):
        EMA(Line(), decay=1.0)


@pytest.mark.parametrize("include_buffers", [True, False])
def test_the_average_is_torchs_own(include_buffers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).double())
    ours = EMA(model, 0.9, include_buffers)

    def average(averages, values, _):
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1.0 - 0.9)
        else:
            torch._foreach_copy_(averages, values)

    torchs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=include_buffers)
    torchs.n_averaged.fill_(1)
    for _ in range(3):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.randn(value.shape).to(value.dtype) if value.is_floating_point() else 1)
        ours.update_parameters(model)
        torchs.update_parameters(model)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for name, value in torchs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
