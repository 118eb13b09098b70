"""The speed of the networks and of the loader beside their peers', and what fusion costs a supernet.

    python benchmarks/speed.py [--quick] [--threads 2]

FBNetV3-B (8.6 million weights) against timm's and, where it is installed, mobile_cv's, for evaluation and for a
training step, both layouts; a supernet against the sum of its blocks; the loader against torchvision's ImageFolder with
torch's DataLoader, with the same decoder and transform. The two of a pair take turns, and a figure is the median of the
pairs' ratios; below 1 ours is faster. Peers that are not installed are left out, with the reason.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import finish, parser, take_turns
from pseudo_label_speed import write_images
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from d2go_fbnetv5.arch import Backbone, Supernet, Topology
from d2go_fbnetv5.data import TrainTransform, build_train_loader
from d2go_fbnetv5.data.imagenet import ImageNetFolder
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.models import ImageClassifier

LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}


class Logits(nn.Module):
    """A classifier of ours as others are: images in, logits out."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.logits(images)


def ours() -> nn.Module:
    """FBNetV3-B with its classifier: of the topology only Stage 0 is left."""
    nothing = Topology([[False] * 4])
    return Logits(ImageClassifier(Backbone("B", nothing, ("path3",)), 1000))


def timm_peer() -> nn.Module:
    import timm

    return timm.create_model("fbnetv3_b")


def mobile_cv_peer() -> nn.Module:
    from mobile_cv.model_zoo.models.fbnet_v2 import fbnet

    return fbnet("FBNetV3_B", pretrained=False)


PEERS = {"timm": timm_peer, "mobile_cv": mobile_cv_peer}
# What each does by default: our trainer makes everything channels last, mobile_cv nothing.
DEFAULT_LAYOUTS = {"mobile_cv": ("channels last", "NCHW")}


def peers() -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Those that are installed, and why the others are left out."""
    found, missing = {}, {}
    for name, build in PEERS.items():
        try:
            found[name] = build()
        except (ImportError, AttributeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def evaluation(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    return run


def training(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.train()
        model(images).square().mean().backward()
        model.zero_grad()

    return run


MODES = {"evaluation": (evaluation, (8, 224)), "training step": (training, (16, 160))}


def ratio(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[float, float]:
    """The median of the pairs' ratios, and the median CPU milliseconds of the first."""
    first(), second()
    times = take_turns({"first": first, "second": second}, rounds)
    ratios = [a / b for a, b in zip(times["first"], times["second"], strict=True)]
    return statistics.median(ratios), 1e3 * statistics.median(times["first"])


def model_rows(threads: list[int], rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    found, missing = peers()
    model, rows = ours(), []
    weights = sum(p.numel() for p in model.parameters())
    for name, peer in found.items():
        theirs = sum(p.numel() for p in peer.parameters())
        pairs = [(layout, layout) for layout in LAYOUTS]
        pairs += [DEFAULT_LAYOUTS[name]] if name in DEFAULT_LAYOUTS else []
        for count in threads:
            torch.set_num_threads(count)
            for mode, (make, (batch, side)) in MODES.items():
                for pair in pairs:
                    steps = []
                    for network, layout in zip((model, peer), pair, strict=True):
                        network.to(memory_format=LAYOUTS[layout])
                        images = torch.randn(batch, 3, side, side).contiguous(memory_format=LAYOUTS[layout])
                        steps.append(make(network, images))
                    value, milliseconds = ratio(*steps, rounds)
                    row = {
                        "peer": name,
                        "weights (ours / peer)": f"{weights:,} / {theirs:,}",
                        "threads": count,
                    }
                    row |= {"what": mode, "layouts (ours / peer)": " / ".join(pair), "ours, ms": milliseconds}
                    rows.append({**row, "ours / peer": value})
                    print(rows[-1], flush=True)
    return rows, missing


def fusion_share(family: str, stages: int, batch: int, side: int, keep: float, rounds: int) -> float:
    """The part of a supernet's forward pass that is not in any of its blocks.

    Measured where the blocks run: apart from the network they find their memory in the cache and are faster. Without
    hooks, whose own time, a tenth of fusion's, would pass for fusion.

    Args:
        keep: the probability of each block in a random topology; 1 for all of them.
    """
    generator = torch.Generator().manual_seed(0)
    topology = Topology(torch.rand(stages, 4, generator=generator) < keep)
    network = Supernet(family, stages).to(memory_format=torch.channels_last).eval()
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    inside: list[float] = []

    def timed(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            start = time.process_time()
            x = run(x)
            inside.append(time.process_time() - start)
            return x

        return forward

    for group in (network.stage0, *network.stages.values()):
        for block in group.values():
            block.forward = timed(block.forward)
    shares = []
    with torch.inference_mode():
        network(images, topology)
        for _ in range(rounds):
            inside.clear()
            start = time.process_time()
            network(images, topology)
            shares.append(1 - sum(inside) / (time.process_time() - start))
    return statistics.median(shares)


def fusion_rows(rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for family, stages, batch, side in (("A", 7, 4, 224), ("N", 4, 16, 96)):
        for name, keep in (("all blocks", 1.0), ("half of the blocks", 0.5)):
            share = fusion_share(family, stages, batch, side, keep, rounds)
            row = {"family": family, "stages": stages, "images": f"{batch} x {side}", "topology": name}
            rows.append({**row, "share of forward": f"{100 * share:.1f}%"})
            print(rows[-1], flush=True)
    return rows


class Pair:
    """ImageFolder's samples through a transform of ours, which takes a seed."""

    def __init__(self, transform: Callable[[dict, int], dict]) -> None:
        self.transform = transform

    def __call__(self, image: torch.Tensor) -> dict:
        return self.transform({"image": image}, int(torch.randint(2**31, ())))


def loader_rows(images: int, workers: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Images per second by wall clock, as workers are other processes; the best of the rounds of each."""
    batch, transform, rows = 32, TrainTransform(short_side=256, crop=224), []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), images)
        for count in workers:
            theirs, mine = [], []
            for _ in range(rounds):
                peer = ImageFolder(folder, loader=read_image, transform=Pair(transform))
                start = time.perf_counter()
                loader = DataLoader(
                    peer, batch, shuffle=True, num_workers=count, collate_fn=list, drop_last=True
                )
                theirs.append(sum(len(part) for part in loader) / (time.perf_counter() - start))
                start = time.perf_counter()
                batches = build_train_loader(
                    ImageNetFolder(folder), transform, batch, seed=0, num_workers=count
                )
                done = sum(len(next(batches)) for _ in range(images // batch))
                mine.append(done / (time.perf_counter() - start))
                del batches
            row = {"workers": count, "ours, images/s": max(mine), "torchvision, images/s": max(theirs)}
            rows.append({**row, "ours / torchvision": max(mine) / max(theirs)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    arguments = parser(__doc__, "output/benchmarks/speed.json")
    arguments.set_defaults(threads=2)  # the models are measured with one and with so many
    arguments.add_argument(
        "--only", nargs="+", choices=("models", "fusion", "loader"), default=("models", "fusion", "loader")
    )
    arguments.add_argument("--rounds", type=int, default=31, help="pairs of each comparison (default 31)")
    args = arguments.parse_args()
    rounds = min(3, args.rounds) if args.quick else args.rounds
    tables, missing = {}, {}
    if "models" in args.only:
        rows, missing = model_rows(sorted({1, args.threads}), rounds)
        tables["FBNetV3-B beside its peers"] = (rows, list(rows[0]) if rows else [])
    if "fusion" in args.only:
        rows = fusion_rows(rounds)
        tables["What fusion costs a supernet"] = (rows, list(rows[0]))
    if "loader" in args.only:
        rows = loader_rows(128 if args.quick else 1024, (0, 2), 1 if args.quick else 3)
        tables["The loader beside torchvision's"] = (rows, list(rows[0]))
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    finish(args.output, tables, left_out=missing)


if __name__ == "__main__":
    main()
