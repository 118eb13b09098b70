"""Searches on objectives whose optimum is known: the supernet hands the mask itself to the tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2go_fbnetv5 import MultitaskSearch
from d2go_fbnetv5.search import Search


class MaskSupernet:
    """A supernet that computes nothing: its only feature is the mask."""

    def __init__(self, num_stages: int, num_paths: int) -> None:
        self.num_stages, self.num_paths = num_stages, num_paths

    def __call__(self, images, topology):
        return {"mask": torch.tensor(topology.mask, dtype=torch.float32)}

    def forward_each(self, images, topologies):
        return [self(images, topology) for topology in topologies]

    def forward_soft(self, images, mask):
        return {"mask": mask}


class QuadraticTask(nn.Module):
    """loss(a) = c . x + x' J x / 2 with x = 2a - 1, plus noise, plus a weight that training can move."""

    in_features = ("mask",)

    def __init__(
        self, name: str, linear: Tensor, pairwise: Tensor, noise: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.name, self.linear, self.pairwise, self.noise = name, linear, pairwise, noise
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.zeros(()))

    def objective(self, masks: Tensor) -> Tensor:
        x = 2 * masks.flatten(-2).to(self.linear.dtype) - 1
        return x @ self.linear + 0.5 * ((x @ self.pairwise) * x).sum(-1)

    def forward(self, features, batch):
        value = self.objective(features["mask"]).float()
        if self.noise:
            value = value + self.noise * torch.randn((), generator=self.generator)
        return {"loss": value * (1 + self.weight)}


def all_masks(num_stages: int, num_paths: int) -> Tensor:
    """Every mask of the space: 2^B x S x P."""
    count = num_stages * num_paths
    bits = torch.arange(2**count)[:, None] >> torch.arange(count)
    return (bits & 1).bool().reshape(-1, num_stages, num_paths)


def random_tasks(count: int, blocks: int, seed: int, noise: float) -> list[QuadraticTask]:
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for t in range(count):
        linear = torch.randn(blocks, generator=generator)
        pairwise = torch.randn(blocks, blocks, generator=generator).triu(1) * 0.5 / blocks**0.5
        tasks.append(QuadraticTask(f"t{t}", linear, pairwise + pairwise.T, noise, seed=1000 * seed + t))
    return tasks


def optimum(task: QuadraticTask, num_stages: int, num_paths: int) -> float:
    """The least value over all 2^B masks, computed in chunks."""
    count = num_stages * num_paths
    best = float("inf")
    low = all_masks(1, min(16, count)).flatten(1).float()
    for high in range(2 ** max(0, count - 16)):
        bits = torch.tensor([(high >> i) & 1 for i in range(count - low.shape[1])], dtype=torch.float32)
        masks = torch.cat([low, bits.expand(low.shape[0], -1)], dim=1)
        best = min(best, float(task.objective(masks[:, None, :]).min()))
    return best


def run_search(tasks, shape, steps, samples, lr, algorithm=MultitaskSearch, **options) -> Search:
    """SGD on the probabilities alone, at the paper's rate for them."""
    search = algorithm(MaskSupernet(*shape), tasks, samples_per_rank=samples, preprocess=len, **options)
    optimizer = torch.optim.SGD(search.param_groups(lr=lr / 0.01, arch_lr_factor=0.01)[-1:], lr=lr)
    batch = [{}] * samples
    for _ in range(steps):
        losses = search(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        search.after_step()
    return search


def quality(search: Search, tasks, optima, shape, seed: int = 0) -> list[float]:
    """Per task how far the most likely topology is from a random one's mean (0) to the optimum (1)."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand((4096, *shape), generator=generator) < 0.5
    found = search.most_likely()
    result = []
    for task, best in zip(tasks, optima, strict=True):
        mean = float(task.objective(random).mean())
        value = float(task.objective(torch.tensor(found[task.name].mask)))
        result.append((mean - value) / (mean - best))
    return result
