import pytest
import torch
from torch import nn

from d2go_fbnetv5.engine.evaluation import evaluate, precise_batch_norm


class Net(nn.Module):
    """Runs `used` and never `unused`; predicts in evaluation mode, demands labels in training mode."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.modes = []

    def forward(self, batch):
        self.modes.append(self.training)
        x = self.used(torch.stack([sample["image"] for sample in batch]))
        return [{"mean": row.mean()} for row in x]


def make_batches(count=3, size=4):
    generator = torch.Generator().manual_seed(0)
    return [
        [{"image": torch.randn(2, 5, 5, generator=generator) * 3 + 1} for _ in range(size)]
        for _ in range(count)
    ]


def test_statistics_are_those_of_the_batches_and_then_what_they_were():
    net, batches = Net(), make_batches()
    net.used.running_mean.fill_(7.0)
    net.unused.running_var.fill_(5.0)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pixels = torch.cat([torch.stack([s["image"] for s in batch]) for batch in batches])
    with precise_batch_norm(net, batches):
        assert torch.allclose(net.used.running_mean, pixels.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(net.used.running_var, pixels.var(dim=(0, 2, 3), unbiased=False), atol=1e-4)
        assert net.unused.running_var.tolist() == [5.0, 5.0]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.used.momentum == 0.1
    assert net.training and net.used.training


def test_heads_predict_while_statistics_are_estimated():
    net = Net().train()
    with precise_batch_norm(net, make_batches()):
        pass
    assert net.modes == [False, False, False]


def test_statistics_come_back_when_the_evaluation_fails():
    net = Net()
    with pytest.raises(KeyError), precise_batch_norm(net, make_batches()):
        raise KeyError
    assert net.used.running_mean.tolist() == [0.0, 0.0]


def test_evaluate_passes_every_batch_with_its_outputs_and_restores_the_mode():
    class Count:
        def reset(self):
            self.pairs = 0

        def process(self, inputs, outputs):
            self.pairs += sum("image" in i and "mean" in o for i, o in zip(inputs, outputs, strict=True))

        def evaluate(self):
            return {"pairs": float(self.pairs)}

    net = Net().train()
    assert evaluate(net, make_batches(count=2, size=3), Count()) == {"pairs": 6.0}
    assert net.modes == [False, False]
    assert net.training
