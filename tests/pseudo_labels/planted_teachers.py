"""Teachers for tests, of the kind module:function."""

import json

import torch

from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.pseudo_labels import Teacher


class Truth(Teacher):
    """Knows the labels of a set by its images, with scores that are planted in turn.

    Args:
        index: of the set.
        scores: of boxes, of pixels (by columns) and of classes: those at 0, 1, ... of an image.
    """

    def __init__(self, device: torch.device, index: str, scores: list[float]) -> None:
        dataset = MultitaskDataset(index)
        self.known = {sample["image"].numpy().tobytes(): sample for sample in dataset}
        self.box_names, self.sem_seg_names = dataset.info.box_names, dataset.info.sem_seg_names
        self.class_names, self.depth_units = dataset.info.class_names, dataset.info.depth_units
        self.scores = torch.tensor(scores, dtype=torch.float64)

    def planted(self, count: int) -> torch.Tensor:
        return self.scores[torch.arange(count) % len(self.scores)]

    def __call__(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.label(self.known[image.numpy().tobytes()]) for image in images]

    def label(self, sample: dict) -> dict[str, torch.Tensor]:
        map_scores = self.planted(sample["sem_seg"].shape[1])
        probabilities = torch.nn.functional.one_hot(sample["sem_seg"], len(self.sem_seg_names))
        return {
            "boxes": sample["boxes"],
            "scores": self.planted(len(sample["boxes"])),
            "labels": sample["box_labels"],
            "probabilities": probabilities.permute(2, 0, 1) * map_scores,
            "depth": sample["depth"],
            "class_scores": self.planted(1)
            * torch.nn.functional.one_hot(torch.tensor(sample["class_label"]), len(self.class_names)),
        }


class Bright(Teacher):
    """Labels what is bright, so that labels can be told to lie on it: a box, a map and one of two classes."""

    box_names, sem_seg_names, class_names = ("bright",), ("dark", "bright"), ("little", "much")

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.label(image) for image in images]

    def label(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = image.float().mean(0) > 127
        rows, columns = (bright.any(dim).nonzero()[:, 0] for dim in (1, 0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else []
        share = bright.double().mean()
        return {
            "boxes": torch.tensor(box).float().reshape(-1, 4),
            "scores": torch.ones(len(box) // 4),
            "labels": torch.zeros(len(box) // 4, dtype=torch.long),
            "sem_seg": bright.long(),
            "sem_seg_scores": torch.ones(bright.shape),
            "class_scores": torch.stack([1 - share, share]),
        }


class Faulty(Bright):
    """Does what the image's first pixel says: 0 is right, k breaks the contract in the k-th way."""

    faults = json.loads(
        """["", "nan box", "nan score", "nan pixel", "nan class", "score 2", "label 1", "label -1", "no scores",
            "lengths", "classes", "pixels of another size", "float labels", "raises", "list", "outside", "no area"]"""
    )

    def label(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        output = super().label(image)
        fault = self.faults[int(image[0, 0, 0]) // 4]
        nan = torch.tensor(float("nan"))
        if fault == "nan box":
            output["boxes"][0, 2] = nan
        elif fault == "nan score":
            output["scores"][0] = nan
        elif fault == "nan pixel":
            output["sem_seg_scores"][1, 2] = nan
        elif fault == "nan class":
            output["class_scores"][1] = nan
        elif fault == "score 2":
            output["scores"][0] = 2
        elif fault in ("label 1", "label -1"):
            output["labels"][0] = int(fault.split()[1])
        elif fault == "no scores":
            del output["scores"]
        elif fault == "lengths":
            output["scores"] = torch.ones(2)
        elif fault == "classes":
            output["class_scores"] = torch.tensor([0.2, 0.3, 0.5])
        elif fault == "pixels of another size":
            output["sem_seg"] = output["sem_seg"][1:]
        elif fault == "float labels":
            output["labels"] = output["labels"].float()
        elif fault == "raises":
            raise RuntimeError("no such luck")
        elif fault == "list":
            return [output]
        elif fault == "outside":
            height, width = image.shape[-2:]
            output["boxes"] = torch.tensor(
                [
                    [-5.0, -5, 4, 4],
                    [width - 2, 1, width + 9, 3],
                    [-9, 0, -1, 3],
                    [0, height + 1, 4, height + 9],
                ]
            )
            output["scores"], output["labels"] = torch.ones(4), torch.zeros(4, dtype=torch.long)
        elif fault == "no area":
            output["boxes"] = torch.tensor([[3.0, 3, 3, 9], [9, 9, 2, 2]])
            output["scores"], output["labels"] = torch.ones(2), torch.zeros(2, dtype=torch.long)
        return output


class Broken(Bright):
    def label(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError("always broken")


class Painter(Bright):
    def label(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        image[:] = 0
        return super().label(image)


class NoTeacher:
    def __init__(self, device: torch.device) -> None:
        pass
