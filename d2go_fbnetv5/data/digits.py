"""DigitScenes: handwritten digits on photographs, with exact labels for four tasks and nothing to download."""

from functools import lru_cache, partial

import numpy as np

from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.data.scenes import Item, Scenes, tight
from d2go_fbnetv5.utils.opencv import opencv

DIGIT_NAMES = tuple(str(digit) for digit in range(10))

# Every fifth digit belongs to validation, whatever the seed: no seed of one split can show a digit of the other.
_VAL_EVERY = 5
# Inks are brighter than the dimming leaves anything, so that strokes are told from the photograph by their
# brightness, as chalk is from a blackboard. They differ in colour.
_MIN_INK, _MIN_INK_DISTANCE = 160.0, 80.0
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@lru_cache(maxsize=1)
def glyphs() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return scikit-learn's digits without their empty borders (h x w float32 in [0, 1]), and their labels."""
    from sklearn.datasets import load_digits  # takes seconds, and most who read data draw no digits

    data = load_digits()
    found = []
    for image in data.images.astype(np.float32) / 16:
        found.append(image[tight(image > 0)].copy())
    return tuple(found), data.target.astype(np.int64)


def digit_indices(split: str) -> np.ndarray:
    """Return which of scikit-learn's 1797 digits a split draws from."""
    indices = np.arange(len(glyphs()[0]))
    held_out = indices % _VAL_EVERY == _VAL_EVERY - 1
    return indices[held_out if split == "val" else ~held_out]


class DigitScenes(Scenes):
    """Scenes of 1 to ``max_digits`` handwritten digits in bright inks, drawn on the fly on dimmed crops of two
    photographs.

    ``train`` and ``val`` share no digit. At 128 pixels digits are about 12 to 80 pixels tall.

    Args:
        split, size, num_images, seed: as `Scenes` has them.
        max_digits: most digits in a scene.
    """

    names = DIGIT_NAMES
    heights = (12 / 128, 40 / 128, 80 / 128)
    dimmed = (0.25, 0.5)
    option = "max_digits"

    def __init__(
        self,
        split: str = "train",
        size: int | tuple[int, int] = 128,
        num_images: int = 8192,
        seed: int = 0,
        max_digits: int = 5,
    ) -> None:
        super().__init__(split, size, num_images, seed, max_digits)
        self._indices = digit_indices(split)

    def render(self, rng: np.random.Generator, height: float) -> Item:
        cv2 = opencv()
        shapes, labels = glyphs()
        index = int(rng.choice(self._indices))
        glyph = shapes[index]
        rows, columns = glyph.shape
        stretch = rng.uniform(0.85, 1.2)
        tall = max(int(round(height)), 4)
        wide = int(np.clip(round(tall * columns / rows * stretch), 3, self.size[1] * self.heights[-1]))
        # Without a border the interpolation would cut the strokes off where the glyph ends.
        padded = cv2.copyMakeBorder(glyph, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        scale_y, scale_x = tall / rows, wide / columns
        size = (int(round((columns + 2) * scale_x)), int(round((rows + 2) * scale_y)))
        smooth = cv2.resize(padded, size, interpolation=cv2.INTER_CUBIC)
        # The edge, from no ink to all, is as wide as about one pixel of the scene.
        sharpness = max(1.5, 0.4 * min(scale_x, scale_y))
        alpha = np.clip((smooth - smooth.max() / 2) * sharpness + 0.5, 0, 1)
        mask = alpha >= 0.5
        window = tight(mask)
        return Item(int(labels[index]), 0, 0, alpha[window], mask[window])

    def paint(self, image: np.ndarray, items: list[Item], rng: np.random.Generator) -> None:
        inks: list[np.ndarray] = []
        for digit in items:
            colours = rng.uniform(0, 255, (16, 3)).astype(np.float32)
            # Towards white as far as it takes to be bright enough.
            brightness = colours @ _LUMINANCE
            missing = np.clip((_MIN_INK - brightness) / np.maximum(255 - brightness, 1), 0, 1)[:, None]
            colours += missing * (255 - colours)
            distance = np.full(len(colours), np.inf)
            for ink in inks:
                distance = np.minimum(distance, np.linalg.norm(colours - ink, axis=1))
            good = np.flatnonzero(distance >= _MIN_INK_DISTANCE)
            ink = colours[good[0] if len(good) else distance.argmax()]
            inks.append(ink)
            window = image[digit.window]
            window += digit.alpha[..., None] * (ink - window)


register_dataset("digit_scenes_train")(partial(DigitScenes, "train"))
register_dataset("digit_scenes_val")(partial(DigitScenes, "val", num_images=512))
