"""ADE20K with the 150 classes of the MIT Scene Parsing benchmark (ADEChallengeData2016)."""

from pathlib import Path

from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.data.sem_seg_folder import SemSegFolder
from d2go_fbnetv5.utils.errors import InputError

SPLITS = ("training", "validation")

# The first name of each of the benchmark's classes, in its order.
_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""
ADE20K_NAMES = tuple(name.strip() for name in _NAMES.split(","))


@register_dataset("ade20k")
def ade20k(root: str | Path, split: str = "training") -> SemSegFolder:
    """``root/images/<split>/*.jpg`` with ``root/annotations/<split>/*.png``: 0 is ignored, k becomes k - 1.

    Args:
        root: the unpacked ADEChallengeData2016.
        split: "training" or "validation".

    Raises what ``SemSegFolder`` raises, and ValueError for another split.
    """
    if split not in SPLITS:
        raise InputError(f"ade20k: split is {split!r}, allowed are {', '.join(SPLITS)}")
    images, maps = (Path(root) / kind / split for kind in ("images", "annotations"))
    return SemSegFolder(images, maps, ADE20K_NAMES, values=range(1, 151), ignore_values=(0,))
