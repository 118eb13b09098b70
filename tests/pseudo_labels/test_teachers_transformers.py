"""Hugging Face's models as teachers: tiny ones with random weights, saved to a folder and read back."""

import pytest
import torch

from d2go_fbnetv5.pseudo_labels import build_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import bounded

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CLASSES = {0: "N/A", 1: "cat", 2: "dog"}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
SHORTEST = {"shortest_edge": 64, "longest_edge": 96}
SQUARE = {"height": 64, "width": 64}


def resnet(*stages):
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=list(stages)
    )


def detr(dim, backbone, **heads):
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        num_queries=5,
        d_model=dim,
        id2label=CLASSES,
        **LAYERS,
        **heads,
    )
    return config, transformers.DetrImageProcessor(size=SHORTEST)


def swin():
    return transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def build_detr():
    config, processor = detr(16, resnet("stage4"), **HEADS)
    return transformers.DetrForObjectDetection(config), processor


def build_detr_segmentation():
    stages = [f"stage{i}" for i in range(1, 5)]
    config, processor = detr(64, resnet(*stages), encoder_attention_heads=8, decoder_attention_heads=8)
    return transformers.DetrForSegmentation(config), processor


def build_rt_detr():
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8] * 3,
        encoder_ffn_dim=16,
        d_model=16,
        decoder_in_channels=[16] * 3,
        decoder_ffn_dim=16,
        decoder_layers=1,
        num_queries=5,
        id2label=CLASSES,
        **HEADS,
    )
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor(size=SQUARE)


def build_maskformer():
    config = transformers.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=transformers.DetrConfig(d_model=32, num_queries=5, **LAYERS, **HEADS),
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=CLASSES,
    )
    processor = transformers.MaskFormerImageProcessor(size=SHORTEST)
    return transformers.MaskFormerForInstanceSegmentation(config), processor


def build_mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label=CLASSES,
    )
    processor = transformers.Mask2FormerImageProcessor(size=SHORTEST)
    return transformers.Mask2FormerForUniversalSegmentation(config), processor


def build_segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label=CLASSES,
    )
    processor = transformers.SegformerImageProcessor(size=SQUARE)
    return transformers.SegformerForSemanticSegmentation(config), processor


def build_mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, id2label=CLASSES)
    processor = transformers.MobileNetV2ImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
    return transformers.MobileNetV2ForImageClassification(config), processor


def build_dpt():
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
    )
    return transformers.DPTForDepthEstimation(config), transformers.DPTImageProcessor(size=SQUARE)


def build_depth_anything(**options):
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=[f"stage{i}" for i in range(1, 5)],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        head_hidden_size=4,
        **options,
    )
    processor = transformers.DPTImageProcessor(size={"height": 56, "width": 56})
    return transformers.DepthAnythingForDepthEstimation(config), processor


def build_metric_depth_anything():
    return build_depth_anything(depth_estimation_type="metric", max_depth=20)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def saved(tmp_path):
    def save(build):
        torch.manual_seed(0)
        model, processor = build()
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return model.eval(), processor, str(tmp_path / "model")

    return save


def photos():
    generator = torch.Generator().manual_seed(0)
    sizes = ((90, 70), (50, 80), (90, 70))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def assert_alike_alone(teacher, images, found):
    for image, output in zip(images, found, strict=True):
        (alone,) = teacher([image])
        for key, value in output.items():
            assert torch.allclose(alone[key].float(), value.float(), atol=1e-4), key


@pytest.mark.parametrize("build", [build_detr, build_rt_detr])
def test_detectors(saved, build):
    model, processor, folder = saved(build)
    teacher = build_teacher("transformers", model=folder)
    assert (teacher.box_names, teacher.sem_seg_names, teacher.class_names) == (("cat", "dog"), (), ())
    images = photos()
    found = teacher(images)
    assert_alike_alone(teacher, images, found)
    # transformers' own words for it, less the class that is none.
    inputs = processor(images=[images[1]], return_tensors="pt", input_data_format="channels_first")
    (own,) = processor.post_process_object_detection(model(**inputs), threshold=0.0, target_sizes=[(50, 80)])
    kept = own["labels"] > 0
    assert torch.equal(found[1]["labels"], own["labels"][kept] - 1)
    assert torch.allclose(found[1]["boxes"], own["boxes"][kept], atol=1e-3)
    assert torch.allclose(found[1]["scores"], own["scores"][kept], atol=1e-5)
    assert len(found[1]["boxes"]) > 0


@pytest.mark.parametrize("build", [build_maskformer, build_mask2former, build_detr_segmentation])
def test_segments_that_are_queries(saved, build):
    model, processor, folder = saved(build)
    teacher = build_teacher("transformers", model=folder)
    assert (teacher.box_names, teacher.sem_seg_names, teacher.class_names) == ((), ("cat", "dog"), ())
    images = photos()
    found = teacher(images)
    assert_alike_alone(teacher, images, found)
    inputs = processor(images=[images[1]], return_tensors="pt", input_data_format="channels_first")
    output = model(**inputs)
    if build is build_detr_segmentation:
        classes, masks = output.logits[0], output.pred_masks[0]
    else:
        classes, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
    size = inputs["pixel_values"].shape[-2:]
    masks = torch.nn.functional.interpolate(masks[None], size, mode="bilinear")[0].sigmoid()
    sums = sum(p[:3, None, None] * mask for p, mask in zip(classes.softmax(1), masks, strict=True))
    assert torch.allclose(found[1]["probabilities"], bounded(sums)[1:], atol=1e-4)
    assert found[1]["probabilities"].max() <= 1


def test_padding_of_a_fixed_size_is_cut_off(saved):
    _, _, folder = saved(build_maskformer)
    plain, padded = (
        build_teacher("transformers", model=folder, processor=options)
        for options in ({}, {"pad_size": {"height": 128, "width": 128}})
    )
    images = photos()
    inputs = padded.processor(images=images[:1], return_tensors="pt", input_data_format="channels_first")
    assert inputs["pixel_values"].shape[-2:] == (128, 128)
    shapes = [[output["probabilities"].shape for output in teacher(images)] for teacher in (plain, padded)]
    assert shapes[0] == shapes[1] == [(2, 96, 64), (2, 64, 96), (2, 96, 64)]


def test_a_segmenter_of_logits(saved):
    model, processor, folder = saved(build_segformer)
    teacher = build_teacher("transformers", model=folder, names=["sky", "sea", "sand"])
    assert teacher.sem_seg_names == ("sky", "sea", "sand")
    images = photos()
    found = teacher(images)
    assert_alike_alone(teacher, images, found)
    inputs = processor(images=[images[0]], return_tensors="pt", input_data_format="channels_first")
    assert torch.allclose(found[0]["probabilities"], model(**inputs).logits.softmax(1)[0], atol=1e-5)
    next(teacher.model.parameters()).fill_(float("nan"))
    assert teacher(images)[0]["probabilities"].isnan().all()


def test_a_classifier(saved):
    model, processor, folder = saved(build_mobilenet)
    teacher = build_teacher("transformers", model=folder)
    assert teacher.class_names == ("cat", "dog")
    images = photos()
    inputs = processor(images=[images[0]], return_tensors="pt", input_data_format="channels_first")
    expected = model(**inputs).logits.softmax(1)[0, 1:]
    assert torch.allclose(teacher(images)[0]["class_scores"], expected, atol=1e-5)


@pytest.mark.parametrize("build", [build_dpt, build_depth_anything])
def test_what_is_near_by_a_model_of_inverse_depth_has_little_depth(saved, build):
    model, processor, folder = saved(build)
    teacher = build_teacher("transformers", model=folder, depth_ratio=5.0)
    assert teacher.depth_units == ("relative",) and not teacher.class_names
    images = photos()
    found = teacher(images)
    assert_alike_alone(teacher, images, found)
    inputs = processor(images=[images[1]], return_tensors="pt", input_data_format="channels_first")
    inverse, depth = model(**inputs).predicted_depth[0], found[1]["depth"]
    assert depth.shape == inverse.shape
    assert (depth.min().item(), depth.max().item()) == pytest.approx((1 / 5, 1.0), rel=1e-4)
    assert depth.flatten()[inverse.argmax()] == depth.min() and depth.flatten()[inverse.argmin()] == 1
    # 1 / depth is what the model gave, up to scale and shift.
    scaled = (inverse - inverse.min()) / (inverse.max() - inverse.min())
    torch.testing.assert_close(1 / depth, 1 + 4 * scaled, rtol=1e-3, atol=1e-3)


def test_a_metric_model_of_depth_gives_metres(saved):
    model, processor, folder = saved(build_metric_depth_anything)
    teacher = build_teacher("transformers", model=folder)
    assert teacher.depth_units == ("metres",)
    inputs = processor(images=photos()[:1], return_tensors="pt", input_data_format="channels_first")
    expected = model(**inputs).predicted_depth[0].clamp(min=1e-4)
    torch.testing.assert_close(teacher(photos()[:1])[0]["depth"], expected, rtol=1e-4, atol=1e-4)


def test_wrong_options_of_a_model_of_depth_are_named(saved):
    _, _, folder = saved(build_dpt)
    with pytest.raises(ValueError, match="names are given, allowed for a model of depth: none"):
        build_teacher("transformers", model=folder, names=["near"])
    with pytest.raises(ValueError, match="'depth_ratio' is 1.0, allowed: more than 1"):
        build_teacher("transformers", model=folder, depth_ratio=1.0)


def test_wrong_input_is_named(saved, tmp_path):
    _, _, folder = saved(build_segformer)
    with pytest.raises(ValueError, match="2 names are given, the model has 3 classes"):
        build_teacher("transformers", model=folder, names=["a", "b"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build_teacher("transformers", model=str(tmp_path / "nowhere"))
    transformers.SegformerModel(transformers.SegformerConfig(depths=[1] * 4)).save_pretrained(folder)
    with pytest.raises(
        ValueError, match="architecture is SegformerModel, allowed are those for ObjectDetection"
    ):
        build_teacher("transformers", model=folder)


def test_missing_weights_are_an_error(saved):
    model, _, folder = saved(build_segformer)
    state = model.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("decode_head.classifier")}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ValueError, match="2 weights are missing: decode_head.classifier.bias"):
        build_teacher("transformers", model=folder)


def test_no_pickle_is_read(saved, tmp_path):
    model, _, folder = saved(build_segformer)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="transformers model .*safetensors"):
        build_teacher("transformers", model=folder)
