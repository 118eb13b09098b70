"""A searched backbone as timm's models are: its feature_info, by a name in timm, and in segmentation-models-pytorch."""

import pytest
import torch
from torch import nn

from d2go_fbnetv5 import MultitaskSearch, Supernet, create_backbone
from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.feature_info import FeatureInfo
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.plugins.timm_models import register_timm_model
from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.utils.errors import InputError

timm = pytest.importorskip("timm")
FOUND = Topology([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]])  # whose last block Path 1 does not need


@pytest.fixture(scope="module")
def search():
    torch.manual_seed(0)
    supernet = Supernet("N", 3)
    info = DatasetInfo(box_names=("a",), sem_seg_names=("b", "c"))
    return MultitaskSearch(supernet, [build_task("seg", supernet.channels, info, feature="path1")]).eval()


@pytest.fixture(scope="module")
def run(search, tmp_path_factory):
    """The folder of a search, as far as it is read here."""
    folder = tmp_path_factory.mktemp("search")
    save_topologies(
        folder / "topologies.json", "N", 3, (64, 64), {"seg": {"topology": FOUND, "outputs": ["path1"]}}
    )
    RunCheckpointer(search, folder).save("model_final", iteration=0)
    return folder


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_what_feature_info_says_is_what_the_features_are(run, images):
    for outputs in (("path0", "path1", "path2", "path3"), ("path1", "path3"), ("path2",)):
        backbone = create_backbone(run, "seg", outputs).eval()
        features, info = backbone(images), backbone.feature_info
        assert info.channels() == [feature.shape[1] for feature in features.values()]
        assert info.reduction() == [64 // feature.shape[2] for feature in features.values()]
        assert len(info) == len(outputs)
        modules = dict(backbone.named_modules())
        assert all(name in modules for name in info.module_name())
    assert create_backbone(run, "seg").feature_info.module_name() == [
        *("stages.stage1.path0", "stages.stage3.path1", "stages.stage2.path2", "stage0.path3")
    ]


def test_our_feature_info_answers_as_timms(run):
    ours = create_backbone(run, "seg").feature_info
    for chosen in (None, (1, 3)):
        mine = FeatureInfo(ours.info, chosen)
        theirs = timm.models.FeatureInfo([dict(each) for each in ours.info], chosen or (0, 1, 2, 3))
        for index in (None, 2, (0, 3)):
            for method in ("channels", "reduction", "module_name", "get_dicts"):
                argument = {"idx": index}
                assert getattr(mine, method)(**argument) == getattr(theirs, method)(**argument)
        assert mine.get_dicts(["index"]) == theirs.get_dicts(["index"])
        assert (len(mine), mine[1]) == (len(theirs), theirs[1]) and mine.out_indices == theirs.out_indices


def test_a_backbone_computes_what_the_supernet_does_where_its_task_looks(run, search, images):
    features = create_backbone(run, "seg").eval()(images)
    expected = search.supernet(images, FOUND)
    torch.testing.assert_close(features["path1"], expected["path1"])
    fresh = create_backbone(run, "seg", pretrained=False).eval()(images)
    assert not torch.allclose(fresh["path1"], features["path1"])


def test_timm_makes_it_by_its_name(run, images):
    register_timm_model("fbnetv5_for_tests", run, "seg")
    register_timm_model("fbnetv5_for_tests", run, "seg")  # as a cell of a notebook that is run again
    model = timm.create_model("fbnetv5_for_tests", features_only=True, pretrained=True).eval()
    expected = create_backbone(run, "seg").eval()(images)
    assert all(map(torch.equal, model(images), expected.values()))
    some = timm.create_model("fbnetv5_for_tests", features_only=True, out_indices=(0, -1)).eval()
    channels = some.feature_info.channels()
    assert channels == [feature.shape[1] for feature in some(images)] == model.feature_info.channels()[::3]
    last = timm.create_model("fbnetv5_for_tests", features_only=True, out_indices=2)
    assert last.feature_info.reduction() == [16, 32]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "features_only is None, allowed: True"),
        ({"features_only": True, "in_chans": 4}, "in_chans is 4, allowed: 3"),
        ({"features_only": True, "output_stride": 8}, "output_stride is 8, allowed: 32"),
        ({"features_only": True, "out_indices": (4,)}, "allowed are -4 to 3"),
    ],
)
def test_what_a_backbone_cannot_be_is_told(run, options, words):
    register_timm_model("fbnetv5_for_tests", run, "seg")
    with pytest.raises(InputError, match=words):
        timm.create_model("fbnetv5_for_tests", **options)


def test_wrong_names_and_runs_are_told_at_once(run, tmp_path):
    with pytest.raises(InputError, match="'resnet18', which timm has a model of its own by"):
        register_timm_model("resnet18", run, "seg")
    with pytest.raises(InputError, match="no task 'det'; available: seg"):
        register_timm_model("fbnetv5_other", run, "det")
    with pytest.raises(FileNotFoundError, match="topologies.json"):
        register_timm_model("fbnetv5_other", tmp_path, "seg")
    with pytest.raises(InputError, match=r"outputs is \['path4'\], allowed: one or more of path0"):
        create_backbone(run, "seg", ["path4"])
    assert not timm.is_model("fbnetv5_other")


def test_a_head_of_ones_own_is_three_lines(run, images):
    backbone = create_backbone(run, "seg", ("path1", "path3"))
    convs = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in backbone.feature_info.channels())
    coarse = [conv(feature) for conv, feature in zip(convs, backbone(images).values(), strict=True)]
    assert [tuple(each.shape) for each in coarse] == [(2, 8, 8, 12), (2, 8, 2, 3)]


@pytest.mark.parametrize("kind", ["Unet", "FPN", "Segformer", "UPerNet"])
def test_segmentation_models_are_built_on_it(run, images, kind):
    models = pytest.importorskip("segmentation_models_pytorch")
    register_timm_model("fbnetv5_for_tests", run, "seg")
    model = getattr(models, kind)("tu-fbnetv5_for_tests", encoder_weights=True, classes=3)
    expected = create_backbone(run, "seg").eval()(images)["path3"]
    torch.testing.assert_close(model.eval().encoder(images)[-1], expected)
    masks = model.train()(images)
    assert masks.shape == (2, 3, 64, 96)
    masks.mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "stages" in name)
