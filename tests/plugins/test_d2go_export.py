"""What D2Go's exporter makes of the models: folded, traced, scripted, in 8 bits."""

import logging
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
ROOT = Path(__file__).parent.parent.parent
SIZES = [(64, 64), (70, 101)]
KINDS = ["ImageClassifier", "LiteMaskFormer", "LiteRCNN"]
SEVERAL = {"det": {"score_threshold": 0.0, "max_detections": 20}, "cls": {}, "depth": {}, "seg": {}}
SETTINGS = f"""
_BASE_: {ROOT}/configs/_base_digits.yaml
MODEL: {{WEIGHTS: "", DEVICE: cpu, FBNETV5: {{TOPOLOGY: ""}}, ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {{SIZE: [64, 64]}}}}
FBNETV5_DATA:
  DATASETS: {{digit_scenes_train: {{size: 64, num_images: 8}}, digit_scenes_val: {{size: 64, num_images: 8}}}}
DATALOADER: {{NUM_WORKERS: 0}}
MODEL_EMA: {{ENABLED: False}}
TEST: {{DETECTIONS_PER_IMAGE: 20}}
SOLVER: {{IMS_PER_BATCH: 4}}
"""


class Case:
    """A model with batch norms that matter, and D2Go's exporter for it."""

    def __init__(self, folder, kind, *settings):
        from d2go_fbnetv5.runner import FBNetV5Runner

        (folder / "model.yaml").write_text(SETTINGS)
        self.cfg = FBNetV5Runner.get_default_cfg()
        self.cfg.merge_from_file(str(folder / "model.yaml"))
        self.cfg.merge_from_list(["MODEL.META_ARCHITECTURE", kind, *settings])
        if kind == "SeveralHeads":
            self.cfg.MODEL.FBNETV5.HEAD.heads = type(self.cfg)(SEVERAL)
        self.cfg.OUTPUT_DIR = str(folder)
        self.runner, self.folder = FBNetV5Runner(), folder
        self.runner._initialize(self.cfg)
        torch.manual_seed(0)
        self.model = self.runner.build_model(self.cfg).eval()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if name.endswith(("running_var", "bn.weight")):
                    value.uniform_(0.5, 1.0)
                elif name.endswith(("bias", "running_mean")):
                    value.normal_(0, 0.1)

    def export(self, kind):
        """The exported file, as `torch.jit.load` has it, and D2Go's predictor."""
        from d2go.export.exporter import convert_and_export_predictor
        from mobile_cv.predictor.api import create_predictor

        loader = self.runner.build_detection_test_loader(self.cfg, list(self.cfg.DATASETS.TRAIN))
        path = convert_and_export_predictor(self.cfg, self.model, kind, str(self.folder), loader)
        return torch.jit.load(Path(path) / "model.jit"), create_predictor(path)

    def outputs(self, model, size):
        image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(size[0]))
        with (
            torch.no_grad(),
            torch.jit.optimized_execution(False),
        ):  # which takes longer than it is worth here
            (found,) = model([{"image": image.float(), "height": 2 * size[0], "width": 2 * size[1]}])
        boxes, values = found.pop("instances", None), list(found.values())
        if boxes is not None:
            assert boxes.image_size == (2 * size[0], 2 * size[1])
            return [boxes.pred_boxes.tensor, boxes.pred_classes, boxes.scores, *values]
        if values[0].dim() == 3 and values[0].shape[1] == size[0]:
            # An exported segmenter knows of no other size.
            return [torch.nn.functional.interpolate(values[0][None], scale_factor=2, mode="bilinear")[0]]
        return values


@pytest.mark.parametrize("kind", [*KINDS, "LiteDepth", "SeveralHeads"])
@pytest.mark.parametrize("way", ["tracing", "scripting"])
def test_models_are_exported_without_a_batch_norm_and_equal_at_any_size(d2go, tmp_path, kind, way):
    case = Case(tmp_path, kind)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    file, predictor = case.export(f"torchscript@{way}")
    assert "batch_norm" not in str(file.inlined_graph)
    for size in SIZES:
        expected, found = (case.outputs(model, size) for model in (case.model, predictor))
        assert expected[0].numel() > 0
        for theirs, ours in zip(found, expected, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert case.model.state_dict().keys() == before.keys()
    assert all(torch.equal(case.model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["tracing", "scripting"])
def test_each_model_is_quantised_and_says_what_stays_in_floats(d2go, tmp_path, kind, way, caplog):
    case = Case(tmp_path, kind)
    with caplog.at_level(logging.INFO):
        file, predictor = case.export(f"torchscript_int8@{way}")
    assert "quantized::conv2d" in str(file.inlined_graph)
    assert "batch_norm" not in str(file.inlined_graph)
    (said,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("In floats")]
    assert ("transformer_decoder, segmentation" in said) == (kind == "LiteMaskFormer")
    for size in SIZES:
        expected, found = (case.outputs(model, size) for model in (case.model, predictor))
        if kind != "LiteRCNN":  # whose untrained scores are so near each other that their order is chance
            error = (found[0] - expected[0]).norm() / expected[0].norm()
            assert error < 0.3


def test_a_model_that_is_not_ours_is_not_quantised_by_our_way(d2go):
    from d2go_fbnetv5.plugins.d2go.quantization import prepare_for_quant
    from d2go_fbnetv5.runner import FBNetV5Runner

    with pytest.raises(
        ValueError, match="a Sequential, has none of FBNetV5's blocks; .* default_rcnn_prepare"
    ):
        prepare_for_quant(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), FBNetV5Runner.get_default_cfg())


def test_other_models_are_not_quantised(d2go, tmp_path):
    with pytest.raises(ValueError, match="a LiteDepth in 8 bits, allowed by D2Go: a classifier, "):
        Case(tmp_path, "LiteDepth").export("torchscript_int8")


def test_on_a_phone_it_is_the_same(d2go, tmp_path):
    from torch.backends import xnnpack
    from torch.jit.mobile import _load_for_lite_interpreter

    case = Case(tmp_path, "ImageClassifier")
    if not xnnpack.enabled:
        with pytest.raises(
            ValueError, match="--predictor-types has torchscript_mobile, .* built without XNNPACK"
        ):
            case.export("torchscript_mobile")
        return
    case.export("torchscript_mobile")
    mobile = _load_for_lite_interpreter(tmp_path / "torchscript_mobile" / "mobile_optimized.ptl")
    image = torch.randint(0, 256, (3, 70, 101)).float()
    with torch.no_grad():
        (expected,) = case.model([{"image": image}])
        torch.testing.assert_close(mobile(image), expected["class_scores"], atol=1e-4, rtol=1e-4)


def test_what_torch_cannot_convert_stays_in_floats(d2go, caplog):
    from detectron2.layers import Conv2d
    from torch.ao.quantization import QuantWrapper

    from d2go_fbnetv5.arch.blocks import ConvBNAct
    from d2go_fbnetv5.plugins.d2go.quantization import prepare_for_quant
    from d2go_fbnetv5.runner import FBNetV5Runner

    ours = torch.nn.Sequential(ConvBNAct(3, 8))
    model = torch.nn.ModuleDict({"backbone": ours, "lateral": Conv2d(8, 8, 1)}).eval()
    with caplog.at_level(logging.INFO):
        prepare_for_quant(model, FBNetV5Runner.get_default_cfg())
    assert type(model["backbone"]) is QuantWrapper
    assert type(model["lateral"]) is Conv2d
    assert "lateral" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_detectron2s_scripting_takes_the_models(d2go, tmp_path, kind):
    from detectron2.export import scripting_with_instances

    from d2go_fbnetv5.plugins.d2go.export import FIELDS

    case = Case(tmp_path, kind)
    names = list(case.model.state_dict())
    scripted = scripting_with_instances(case.model, FIELDS)
    assert list(case.model.state_dict()) == names
    image = torch.randint(0, 256, (3, 70, 101)).float()
    with torch.no_grad():
        if kind == "LiteRCNN":
            found = scripted.inference([{"image": image}], None, False)[0]
            expected = case.model.inference([{"image": image}], None, False)[0]
            pairs = [(found.pred_boxes.tensor, expected.pred_boxes.tensor), (found.scores, expected.scores)]
        else:
            (found,), (expected,) = scripted([{"image": image}]), case.model([{"image": image}])
            pairs = [(found[key], value) for key, value in expected.items()]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


QAT = [
    *("QUANTIZATION.QAT.ENABLED", True, "QUANTIZATION.QAT.START_ITER", 1),
    *("QUANTIZATION.QAT.ENABLE_OBSERVER_ITER", 0, "QUANTIZATION.QAT.DISABLE_OBSERVER_ITER", 5),
    *("QUANTIZATION.QAT.FREEZE_BN_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.STEPS", []),
    *("SOLVER.BASE_LR", 1e-4, "SOLVER.OPTIMIZER", "sgd", "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0),
]


SLOWER = "_enable_slow_path_for_better_numerical_stability"  # each convolution twice while batch norms learn


def observe_ranges(model, run):
    """Let the model's ranges be those of what ``run`` computes.

    Beyond a range the file and its imitation are not alike: of an activation's 8 bits fbgemm's range has 7, at whose
    end the imitation cuts off and the file does not. Ranges of six steps of training are not those of evaluation.
    """
    for module in model.modules():
        observer = getattr(module, "activation_post_process", None)
        if isinstance(module, torch.ao.quantization.FakeQuantizeBase) and hasattr(
            observer, "averaging_constant"
        ):
            observer.averaging_constant = 1.0
    model.apply(torch.ao.quantization.enable_observer)
    for _ in range(3):  # a layer's range depends on those before it
        run()
    model.apply(torch.ao.quantization.disable_observer)


@pytest.mark.parametrize("kind", KINDS)
def test_training_for_int8_starts_from_floats_goes_on_and_is_exported(d2go, tmp_path, kind):
    floats = Case(tmp_path, kind)
    torch.save({"model": floats.model.state_dict()}, tmp_path / "floats.pth")
    (tmp_path / "run").mkdir()
    case = Case(
        tmp_path / "run", kind, *QAT, "MODEL.WEIGHTS", str(tmp_path / "floats.pth"), "SOLVER.MAX_ITER", 4
    )
    case.model.apply(torch.ao.quantization.disable_observer)
    case.runner.build_checkpointer(case.cfg, case.model, str(tmp_path / "run")).load(case.cfg.MODEL.WEIGHTS)
    for expected, found in zip(*(case.outputs(m, (64, 64)) for m in (floats.model, case.model)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    slower = [getattr(module, SLOWER) for module in case.model.modules() if hasattr(module, SLOWER)]
    assert slower and not any(slower)  # no batch norm of the floats is 0

    for last in (4, 6):
        case.cfg.SOLVER.MAX_ITER = last
        model = case.runner.build_model(case.cfg)
        case.runner.do_train(case.cfg, model, resume=last > 4)
    assert all(value.isfinite().all() for name, value in model.named_parameters())
    assert (tmp_path / "run" / "model_0000005.pth").is_file()

    case.cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    trained = case.runner.build_model(case.cfg, eval_only=True)
    case.model = trained
    observe_ranges(trained, lambda: case.outputs(trained, (64, 64)))
    file, predictor = case.export("torchscript_int8")
    assert "quantized::conv2d" in str(file.inlined_graph)
    if kind != "LiteRCNN":  # whose untrained scores are so near each other that their order is chance
        for expected, found in zip(*(case.outputs(m, (64, 64)) for m in (trained, predictor)), strict=True):
            assert (found - expected).norm() < 0.1 * expected.norm()


def test_weights_of_a_training_for_int8_are_no_floats(d2go, tmp_path):
    from d2go_fbnetv5.utils.errors import InputError

    case = Case(tmp_path, "ImageClassifier")
    torch.save({"model": {"backbone.x.weight_fake_quant.scale": torch.ones(1)}}, tmp_path / "int8.pth")
    checkpointer = case.runner.build_checkpointer(case.cfg, case.model, str(tmp_path))
    with pytest.raises(InputError, match="a training with QUANTIZATION.QAT.ENABLED True"):
        checkpointer.load(str(tmp_path / "int8.pth"))
