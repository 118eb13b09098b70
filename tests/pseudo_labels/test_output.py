"""Parts of a labelling become one index."""

import numpy as np
import torch

from d2go_fbnetv5.data.index_files import map_index
from d2go_fbnetv5.pseudo_labels.filter import ClassMap, map_boxes
from d2go_fbnetv5.pseudo_labels.labeller import Labels
from d2go_fbnetv5.pseudo_labels.output import ChunkWriter, Output, merge
from d2go_fbnetv5.tasks.base import DatasetInfo

INFO = DatasetInfo(box_names=("cat", "dog"))


def sample(**more):
    boxes = torch.tensor([[0.0, 0, 4, 5], [1, 1, 3, 3]])
    return {"boxes": boxes, "box_labels": torch.tensor([0, 1]), **more}


def write(output, number, samples):
    """A chunk of one image of 20 x 10 for each sample; None is one that nobody labelled."""
    folder = output.chunk(number)
    folder.mkdir(parents=True)
    writer = ChunkWriter(folder, f"chunks/{number:05d}", INFO, with_scores=False)
    for place, one in enumerate(samples):
        boxes = None if one is None else map_boxes(one, (20, 10), ClassMap("DET", INFO.box_names))
        writer.add(place, f"{place}.png", 10 * number + place, (20, 10), Labels(boxes=boxes))
    writer.write()
    (folder / "chunk.json").write_text(output.seal(number, folder))


def test_parts_that_say_more_of_their_boxes_join_with_those_that_say_less(tmp_path):
    output = Output(tmp_path)
    output.job.write_text("{}")
    areas = torch.tensor([7.5, 2.25], dtype=torch.float64)
    write(output, 0, [None, sample(), sample(box_areas=areas)])
    write(output, 1, [])
    write(output, 2, [sample(box_is_crowd=torch.tensor([False, True]))])
    index = merge(output, 3)
    assert index.has_boxes.tolist() == [False, True, True, True]
    assert index.boxes.starts.tolist() == [0, 0, 2, 4, 6]
    assert index.boxes.areas.tolist() == [20, 4, 7.5, 2.25, 20, 4]
    assert index.boxes.crowd.tolist() == [False] * 5 + [True] and index.boxes.scores is None
    np.testing.assert_array_equal(map_index(output.index).boxes.areas, index.boxes.areas)
