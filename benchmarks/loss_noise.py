"""How much of what tells a search's networks apart is chance of a detector's samplers, and how much the networks.

    OMP_NUM_THREADS=1 python benchmarks/loss_noise.py output/demo

Of a finished search: the losses of det's likeliest networks on the same --batches batches, once as samplers of anchors
and proposals have it and once as they are on average (SEARCH.HEADS.det.expected_losses). What all networks have in
common on a batch is taken off. The deviation is that of a network's loss from batch to batch; the networks' own spread
is what is left of the spread of their means without the share that this deviation has in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import finish, parser

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.front.searches import open_search
from d2go_fbnetv5.search.decide import likeliest
from d2go_fbnetv5.tasks import build_task


@torch.no_grad()
def losses_of(search: Any, task: str, networks: Sequence[Topology], batches: Sequence[Any]) -> torch.Tensor:
    """The loss of each network (columns) on each batch (rows), as in training."""
    rows = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        features = search.supernet.forward_each(search.preprocess(batch), networks)
        rows.append([float(search.task_loss(task, each, batch)) for each in features])
    return torch.tensor(rows, dtype=torch.double)


def deviation_and_spread(losses: torch.Tensor) -> tuple[float, float]:
    """A network's deviation from batch to batch, and the networks' own spread; of batches (rows) x networks."""
    own = losses - losses.mean(dim=1, keepdim=True)
    noise = float(own.var(dim=0).mean())
    spread = float(own.mean(dim=0).var()) - noise / len(losses)
    return math.sqrt(noise), math.sqrt(max(spread, 0.0))


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/loss_noise.json")
    parse.add_argument("search", type=Path, help="its folder")
    parse.add_argument("--networks", type=int, default=32, help="the likeliest ones")
    parse.add_argument("--batches", type=int, default=24, help="of the search's size")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.networks, args.batches = 3, 2
    rows = []
    with open_search(args.search) as run:
        search: Any = run.model.train()
        probs = search.distribution.probs[list(search.tasks).index("det")].detach()
        networks = likeliest(probs, args.networks, search.outputs("det"))
        stream = run.data.train_batches()
        batches = [next(stream) for _ in range(args.batches)]
        weights, options = search.tasks["det"].state_dict(), dict(run.cfg.SEARCH.HEADS.get("det", {}))
        for expected in (False, True):
            options["expected_losses"] = expected
            search.tasks["det"] = build_task(
                "det", search.supernet.channels, run.data.info, **options
            ).train()
            search.tasks["det"].load_state_dict(weights)
            before = time.process_time()
            losses = losses_of(search, "det", networks, batches)
            seconds = time.process_time() - before
            deviation, spread = deviation_and_spread(losses)
            rows.append(
                {
                    "losses": "mean of all samples" if expected else "of one sample",
                    "deviation, batch by batch": deviation,
                    "networks' spread": spread,
                    "batches until the error is half the spread": (2 * deviation / spread) ** 2
                    if spread
                    else None,
                    "ms a network and batch": 1000 * seconds / losses.numel(),
                }
            )
    finish(
        args.output,
        {
            f"{len(networks)} networks, {args.batches} batches of {len(batches[0])} images": (
                rows,
                list(rows[0]),
            )
        },
        options={key: str(value) for key, value in vars(args).items()},
    )


if __name__ == "__main__":
    main()
