"""A script that checks, in two processes, what the processes must agree on; it fails where they do not."""

import torch
from torch import nn

from d2go_fbnetv5.data import build_eval_loader
from d2go_fbnetv5.engine.evaluation import evaluate, precise_batch_norm
from d2go_fbnetv5.engine.launch import launch
from d2go_fbnetv5.engine.writers import StepMeans
from d2go_fbnetv5.utils.ranks import (
    average_batch_norm,
    broadcast,
    gather,
    mean_over_ranks,
    rank,
    world_size,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, batch):
        self.norm(torch.stack([sample["image"] for sample in batch]).float())
        return [{"image_id": sample["image_id"]} for sample in batch]


class SeenImages:
    def reset(self):
        self.ids = []

    def process(self, inputs, outputs):
        self.ids += [output["image_id"] for output in outputs]

    def evaluate(self):
        return {"ids": sorted(i for ids in gather(self.ids) for i in ids)}


class Images:
    def __len__(self):
        return 7

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.randn(3, 4, 4, generator=generator) * (index + 1), "image_id": index}


def check():
    assert world_size() == 2
    assert gather(rank()) == [0, 1]
    assert broadcast(f"from {rank()}") == "from 0"
    # Process 1 alone has "b": the mean is over those that have a key.
    values = {"a": float(rank())} | ({"b": 4.0} if rank() else {})
    assert mean_over_ranks(values) == {"a": 0.5, "b": 4.0}

    net = Net()
    net.norm.running_mean.fill_(float(rank()))
    average_batch_norm(net)
    assert net.norm.running_mean.tolist() == [0.5] * 3

    # A model and its average at once; without statistics there is nothing to do.
    average = Net()
    for norm in (net.norm, average.norm):
        norm.running_var.fill_(1.0 + 2 * rank())
        norm.num_batches_tracked.fill_(3 + rank())
    average_batch_norm(net, average, torch.nn.Linear(1, 1))
    average_batch_norm(torch.nn.Linear(1, 1))
    assert net.norm.running_var.tolist() == average.norm.running_var.tolist() == [2.0] * 3
    assert int(net.norm.num_batches_tracked) == int(average.norm.num_batches_tracked) == 3

    # Means of steps since the last record are each process' own after a resume, too.
    means, resumed = StepMeans(), StepMeans()
    means.add({"loss": torch.tensor(1.0 + rank()), "time": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(3.0)})
    resumed.load_state_dict(means.state_dict())
    for one in (means, resumed):
        one.add({"loss": torch.tensor(2.0)})
    assert resumed.take() == {"loss": (6.0 + rank()) / 3}
    assert means.take()["loss"] == (6.0 + rank()) / 3

    # 7 images on 2 processes, each exactly once.
    loader = build_eval_loader(Images(), None, 2, rank(), world_size())
    assert evaluate(net, loader, SeenImages()) == {"ids": list(range(7))}

    # Precise statistics are those of all processes' images.
    mine = [[Images()[2 * rank()], Images()[2 * rank() + 1]]]
    everything = torch.stack([Images()[i]["image"] for i in range(4)])
    with precise_batch_norm(net, mine):
        assert torch.allclose(net.norm.running_mean, everything.mean(dim=(0, 2, 3)), atol=1e-5)
        variance = everything.var(dim=(0, 2, 3), unbiased=False)
        assert torch.allclose(net.norm.running_var, variance, rtol=1e-4)
    assert net.norm.running_mean.tolist() == [0.5] * 3


if __name__ == "__main__":
    launch(check, (), num_processes=2)
