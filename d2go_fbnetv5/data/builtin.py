"""The built-in sets that every config can name without any options. The readers register themselves."""

from functools import partial

from d2go_fbnetv5.data.digits import DigitScenes
from d2go_fbnetv5.data.fashion import FashionScenes
from d2go_fbnetv5.data.registry import register_dataset

register_dataset("digit_scenes_train")(partial(DigitScenes, "train"))
register_dataset("digit_scenes_val")(partial(DigitScenes, "val", num_images=512))
register_dataset("fashion_scenes_train")(partial(FashionScenes, "train", num_images=65536))
register_dataset("fashion_scenes_val")(partial(FashionScenes, "val", num_images=2048))
