"""Counts a whole model for `flops`, as in Tables 2, 6 and 7, and its average of Appendix H."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.arch.cost import MOST_PIXELS
from d2go_fbnetv5.models.flops import average_flops, model_flops
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import format_count
from d2go_fbnetv5.utils.options import shown
from d2go_fbnetv5.utils.text_files import read_json
from d2go_fbnetv5.zoo import create_model

PARTS = {
    "BB": "backbone (BB)",
    "head": "head",
    "RPN": "region proposals (RPN)",
    "ROI": "box head (ROI), 30 proposals",
    "PD": "pixel decoder (PD)",
    "TD": "transformer decoder (TD)",
    "SM": "segmentation module (SM)",
}


def model_costs(
    name: str,
    size: tuple[int, int] | None,
    topology: str | None = None,
    coco_sizes: str | None = None,
    resize: tuple[int, int] = (224, 320),
    budget: Mapping[str, float] | None = None,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Multiply-adds by part, total and parameters of a model of the zoo.

    Args:
        size: height and width of the image before padding; None for the family's own.
        topology: path of a topologies.json or front.json; None for the zoo's reconstruction.
        coco_sizes: path of a COCO annotation file, or of a JSON list of [height, width]: adds the ``average``.
        resize: for the average, the short side and the bound on the long one.
        budget: that picks the network of a front.json.
        num_classes: None for as many as in the paper.
    """
    model = create_model(name, num_classes, topology, budget=budget)
    size = size or (model.backbone.family.input_size,) * 2
    counted = model_flops(model, size)
    answer: dict[str, Any] = {
        "model": name,
        "size": list(counted.size),
        "padded_size": list(model.padded_size(size)),
        "parts": counted.parts,
        "total": counted.total,
        "parameters": counted.parameters,
    }
    if coco_sizes:
        sizes = read_sizes(coco_sizes)
        answer["average"] = average_flops(counted, sizes, *resize)
        answer["average_images"] = len(sizes)
        answer["average_resize"] = list(resize)
    return answer


def read_sizes(path: str) -> list[tuple[int, int]]:
    """(height, width) of every image in a COCO annotation file, or in a JSON list of such pairs.

    Raises:
        FileNotFoundError, ValueError: names the file and what it should hold.
    """
    try:
        content = read_json(path)
    except (FileNotFoundError, InputError) as error:
        raise type(error)(f"--coco-sizes {error}") from error
    images = content.get("images") if isinstance(content, dict) else content
    if not isinstance(images, list) or not images:
        raise InputError(
            f"--coco-sizes {path}: expected COCO annotations with 'images', or a JSON list of [height, width]"
        )
    sizes: list[Any] = [[i.get("height"), i.get("width")] if isinstance(i, dict) else i for i in images]
    for place, size in enumerate(sizes):
        good = isinstance(size, list) and len(size) == 2
        if not good or not all(type(side) is int and 1 <= side <= MOST_PIXELS for side in size):
            raise InputError(
                f"--coco-sizes {path}: image {place} is of {shown(size)}, expected are height and width of 1 to "
                f"{MOST_PIXELS} pixels"
            )
    return [(height, width) for height, width in sizes]


def model_table(costs: dict[str, Any]) -> Table:
    """Lay out a model's costs as a table, part by part."""
    height, width = costs["size"]
    table = Table(title=Text(f"{costs['model']} at {height}x{width}"), box=SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("FLOPs", justify="right")
    for part, flops in costs["parts"].items():
        *task, name = part.split()
        table.add_row(": ".join([*task, PARTS[name]]), format_count(flops))
    table.add_section()
    table.add_row("total", format_count(costs["total"]))
    if "average" in costs:
        table.add_row(f"average over {costs['average_images']} images", format_count(costs["average"]))
    table.add_row("parameters", format_count(costs["parameters"]))
    return table
