"""The registered teachers, one kind a module. What a kind needs is imported when one is built."""

from d2go_fbnetv5.pseudo_labels.teachers import (
    detectron2_models,
    exported_models,
    searched_models,
    torchvision_models,
    transformers_models,
)

__all__ = [
    "detectron2_models",
    "exported_models",
    "searched_models",
    "torchvision_models",
    "transformers_models",
]
