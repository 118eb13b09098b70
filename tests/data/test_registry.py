import pytest

from d2go_fbnetv5.data import DigitScenes, build_dataset, list_datasets, register_dataset


def test_built_in_names():
    assert {"digit_scenes_train", "digit_scenes_val", "multitask"} <= set(list_datasets())
    train, val = build_dataset("digit_scenes_train", size=64), build_dataset("digit_scenes_val", num_images=9)
    assert (train.split, train.size, val.split, len(val)) == ("train", (64, 64), "val", 9)


def test_register_and_build():
    @register_dataset("tests_registered")
    def factory(count: int):
        return DigitScenes(num_images=count)

    assert len(build_dataset("tests_registered", count=3)) == 3
    with pytest.raises(ValueError, match="'tests_registered' is registered already"):
        register_dataset("tests_registered")(factory)


def test_unknown_name_and_options():
    with pytest.raises(ValueError, match="unknown data set 'nope'; allowed are .*digit_scenes_train"):
        build_dataset("nope")
    with pytest.raises(ValueError, match=r"'digit_scenes_val' .*sizes.*its options are \(size: .*num_images"):
        build_dataset("digit_scenes_val", sizes=3)
    with pytest.raises(ValueError, match="'multitask': .*index"):
        build_dataset("multitask")
