"""Turn a checkpoint of another kind into weights that MODEL.WEIGHTS takes.

    d2go_fbnetv5.convert_weights timm/fbnetv3_b.ra2_in1k supernet_b.pth --family B_TIMM --stages 7
    d2go_fbnetv5.convert_weights hf-hub:user/my_fbnetv3_b supernet_b.pth --family B_TIMM
    d2go_fbnetv5.convert_weights fbnetv3_a.pth supernet_a.pth --family A
    d2go_fbnetv5.convert_weights output/pretrain_n_digits supernet_n_digits.safetensors

FBNetV3's weights, timm's by name or from Hugging Face's hub, or a file of timm's or mobile_cv's, are for Stage 0 and,
for classification on Path 3, MBPool. With --stages each searchable block begins with those of its partition's last two
layers. Of the folder of a search or a pretraining the supernet and the heads are kept, without what only training
needs, and with the configuration. A name that ends in .safetensors makes a file of that format.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from d2go_fbnetv5.arch import list_families
from d2go_fbnetv5.arch.published_weights import convert_published, fill_stages, load_published
from d2go_fbnetv5.engine.checkpoint import list_checkpoints
from d2go_fbnetv5.engine.continuing import CONFIG_FILE
from d2go_fbnetv5.models.weights import read_search_weights
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.checkpoints import SAFETENSORS, save_safetensors, save_tensors
from d2go_fbnetv5.utils.errors import InputError, brief, run_tool
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.files import SIGNATURE, refuse_others

_HUB = "hf-hub:"  # timm's mark of a name on Hugging Face's hub


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    parser = ToolParser("convert_weights", __doc__)
    parser.add_argument(
        "input",
        help="a checkpoint of timm's or mobile_cv's, timm/NAME, hf-hub:USER/NAME, or the folder of a search",
    )
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--family", help=f"of such a checkpoint: one of {', '.join(list_families())}")
    parser.add_argument(
        "--stages",
        type=int,
        metavar="N",
        help="give the searchable blocks of so many stages weights, too (default: none)",
    )
    args = parser.parse_args(argv)
    return run_tool("convert_weights", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    folder = Path(args.input)
    refuse_others(args.output)
    if folder.is_dir():
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise FileNotFoundError(f"{folder}: there is no checkpoint, such as model_final.pth")
        weights = read_search_weights(checkpoints[0])
        notes = {
            "config": (folder / CONFIG_FILE).read_text(encoding="utf-8"),
            "checkpoint": checkpoints[0].name,
        }
    elif args.family is None:
        raise InputError(f"--family is missing: of which family is {args.input}?")
    else:
        weights, notes = _published(args.input, args.family, args.stages), {"family": args.family}
    _write(Path(args.output), weights, notes)
    print(f"{args.output}: {len(weights)} weights of {args.input}")


def _published(source: str, family: str, stages: int | None) -> dict[str, Tensor]:
    """The weights by the names that a search (and its classification head) gives them."""
    is_hub = source.startswith(("timm/", _HUB)) and not Path(source).exists()
    weights = convert_published(_from_hub(source), family) if is_hub else load_published(source, family)
    if stages is not None:
        weights = fill_stages(weights, family, stages)
    return {
        f"supernet.{name}" if name.startswith(("stage0.", "stages.")) else f"tasks.cls.{name}": value
        for name, value in weights.items()
    }


def _from_hub(source: str) -> Mapping[str, Tensor]:
    timm, name = require_extra(source, "timm", "distillation"), source.removeprefix("timm/")
    if not name.startswith(_HUB) and not timm.is_model(name):
        raise InputError(f"{source}: timm {timm.__version__} has no model {name!r}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's, which has many kinds of its own
        raise InputError(
            f"{source}: its weights cannot be fetched ({brief(error)}); a file of them will do"
        ) from error


def _write(path: Path, weights: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    if path.suffix == SAFETENSORS:
        save_safetensors(path, weights, {"author": SIGNATURE, **notes})
    else:
        save_tensors(path, {"author": SIGNATURE, "model": weights, **notes})


def cli() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
