"""Data sets, joint transforms and loaders. See ``multitask`` for the format of one's own data."""

from d2go_fbnetv5.data.ade20k import ade20k
from d2go_fbnetv5.data.coco import CocoDetection
from d2go_fbnetv5.data.depth_folder import DepthFolder
from d2go_fbnetv5.data.digits import DigitScenes
from d2go_fbnetv5.data.fashion import FashionScenes
from d2go_fbnetv5.data.first_look import look_at_sets
from d2go_fbnetv5.data.image_folders import ImageFolders
from d2go_fbnetv5.data.imagenet import ImageNetFolder
from d2go_fbnetv5.data.loader import build_eval_loader, build_train_loader, read_batches
from d2go_fbnetv5.data.multitask import MultitaskDataset
from d2go_fbnetv5.data.multitask_writer import write_multitask
from d2go_fbnetv5.data.registry import build_dataset, list_datasets, register_dataset
from d2go_fbnetv5.data.sem_seg_folder import SemSegFolder
from d2go_fbnetv5.data.transforms import ClassifyTransform, EvalTransform, TrainTransform

__all__ = [
    "ClassifyTransform",
    "CocoDetection",
    "DepthFolder",
    "DigitScenes",
    "EvalTransform",
    "FashionScenes",
    "ImageFolders",
    "ImageNetFolder",
    "MultitaskDataset",
    "SemSegFolder",
    "TrainTransform",
    "ade20k",
    "build_dataset",
    "build_eval_loader",
    "build_train_loader",
    "list_datasets",
    "look_at_sets",
    "read_batches",
    "register_dataset",
    "write_multitask",
]
