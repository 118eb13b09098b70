"""Runs the programs of docs/detectron2.md on Detectron2 alone, with D2Go and mobile_cv out of reach: a search, and
detectors that start from it; what goes wrong without our trainer, which must say so; and what else projects do with
such models: Mask R-CNN, SemSegFPN, lazy configurations, DefaultPredictor, tracing and scripting. Arguments: the page,
the folder of a multitask data set (which is COCO's format too), the output folder."""

import sys
from pathlib import Path


class Blocked:
    """An import hook: what works here works without these."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("d2go", "mobile_cv"):
            raise ImportError(f"blocked: {name}")


SEARCH = {
    "SEARCH.ARCH_WARMUP_ITERS": 1,
    "SEARCH.SAMPLES_PER_RANK": 2,
    "SEARCH.EVAL.MAX_IMAGES": 4,
    "SEARCH.EVAL.BN_ITERS": 1,
    "SEARCH.EVAL.RANDOM_TOPOLOGIES": 1,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (3,),
}
DETECTOR = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RETINANET.NUM_CLASSES": 10,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.STEPS": (),
    "INPUT.MIN_SIZE_TRAIN": (96,),
    "DATALOADER.NUM_WORKERS": 0,
}

FPN = {
    "MODEL.BACKBONE.NAME": "build_fbnetv5_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["path0", "path1", "path2", "path3"],
    "MODEL.FBNETV5.OUT_FEATURES": ["path0", "path1", "path2", "path3"],
}
MASK_RCNN = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
}
SEM_SEG_FPN = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 11,
}


def examples(page: str) -> dict[str, str]:
    """The page's programs: of the last two blocks, the second replaces the line that makes it a Lite R-CNN."""
    search, project, retinanet = [part.split("```")[0] for part in page.split("```py\n")[1:]]
    (line,) = [line for line in project.splitlines() if line.startswith("use_lite_rcnn(cfg)")]
    return {
        "MultitaskSearch": search,
        "GeneralizedRCNN": project,
        "RetinaNet": project.replace(line, retinanet),
    }


def run(program: str, settings: dict, output: Path) -> dict:
    """The program with its folders moved and these settings, in a namespace that is returned."""
    setup, training = program.replace("output/search", str(output / "search")).split("trainer = ")
    settings = f"cfg.merge_from_list({[item for pair in settings.items() for item in pair]!r})\n"
    namespace = {"__name__": "page"}
    exec(compile(f"{setup}{settings}trainer = {training}", "detectron2.md", "exec"), namespace)
    return namespace


def plain_search(cfg, ours: bool) -> None:
    """A search by DefaultTrainer, whose optimizer may be ours, and without a hook."""
    from detectron2.data import build_detection_train_loader
    from detectron2.engine import DefaultTrainer

    from d2go_fbnetv5.plugins.detectron2 import SampleMapper, build_optimizer

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg, mapper=SampleMapper.from_config(cfg))

        @classmethod
        def build_optimizer(cls, cfg, model):
            return build_optimizer(cfg, model) if ours else super().build_optimizer(cfg, model)

    cfg = cfg.clone()
    cfg.OUTPUT_DIR += "_plain"
    Trainer(cfg).train()


def refused(what: str, sentence: str, call) -> None:
    from d2go_fbnetv5.utils.errors import InputError

    try:
        call()
    except InputError as error:
        assert sentence in str(error), error
        print("refused", what)
    else:
        raise AssertionError(f"{what} went on")


def check_search(namespace: dict, output: Path) -> None:
    from d2go_fbnetv5.arch.topology_file import load_topologies

    trainer = namespace["trainer"]
    assert {"report.html", "model_final.pth", "metrics.json"} <= {
        p.name for p in (output / "search").iterdir()
    }
    assert list(load_topologies(output / "search" / "topologies.json").tasks) == ["cls", "det", "seg"]
    (arch,) = [group for group in trainer.optimizer.param_groups if group["name"] == "arch"]
    assert arch["params"][0] is trainer.model.distribution.probs
    assert (arch["initial_lr"], arch["weight_decay"], arch["momentum"]) == (0.04, 0, 0)
    refused(
        "DefaultTrainer", "probabilities weight decay 2e-05", lambda: plain_search(namespace["cfg"], False)
    )
    refused("no after_step", "after_step() was not called", lambda: plain_search(namespace["cfg"], True))


def check_start(cfg, backbone: str):
    """The same model with the search's weights loaded, and nothing trained."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer

    model = build_model(cfg)
    FBNetV5Checkpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    search = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    weights = {n.removeprefix(backbone): v for n, v in model.state_dict().items() if n.startswith(backbone)}
    assert len(weights) > 20
    assert all(torch.equal(value, search[f"supernet.{name}"]) for name, value in weights.items())
    if backbone == "backbone.":
        load = DetectionCheckpointer(model).resume_or_load
        refused("DetectionCheckpointer", "FBNetV5Checkpointer", lambda: load(cfg.MODEL.WEIGHTS, resume=False))
    return model


def check_fpn(kind: str, cfg, head: dict) -> None:
    """Detectron2's FPN on the search's network: a step of training, and a prediction."""
    import torch
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = cfg.clone()
    cfg.merge_from_list([item for pair in {**FPN, **head}.items() for item in pair])
    model = check_start(cfg, "backbone.bottom_up.")
    truth = Instances((96, 130), gt_boxes=Boxes(torch.tensor([[8.0, 8, 60, 70]])))
    truth.gt_classes, truth.gt_masks = torch.tensor([3]), BitMasks(torch.zeros(1, 96, 130))
    truth.gt_masks.tensor[:, 8:70, 8:60] = True
    image = torch.randint(0, 256, (3, 96, 130))
    labels = {"instances": truth, "sem_seg": truth.gt_masks.tensor[0].long()}
    with EventStorage(0):
        losses = model.train()([{"image": image, **labels}] * 2)
    sum(losses.values()).backward()
    weight = model.backbone.bottom_up.stage0.path0[0].conv.weight
    assert all(loss.isfinite() for loss in losses.values()) and weight.grad.any()
    with torch.no_grad():
        (found,) = model.eval()([{"image": image}])
    if "sem_seg" in found:
        assert found["sem_seg"].shape == (11, 96, 130)
    else:
        assert "loss_mask" in losses and found["instances"].pred_masks.shape[1:] == (96, 130)
    print("started", kind)


def check_deployed(cfg, trained) -> None:
    """DefaultPredictor, TracingAdapter and scripting_with_instances give what the trained model gives."""
    import torch
    from detectron2.engine import DefaultPredictor
    from detectron2.export import TracingAdapter, scripting_with_instances
    from detectron2.structures import Boxes

    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth", "INPUT.MIN_SIZE_TEST", 0])
    predictor = DefaultPredictor(cfg)
    trained.roi_heads.box_predictor.test_score_thresh = 0.0
    predictor.model.roi_heads.box_predictor.test_score_thresh = 0.0
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((96, 130), (64, 70))]
    with torch.no_grad():
        expected = [trained.inference([{"image": image}], None, False)[0] for image in images]
    for image, instances in zip(images, expected, strict=True):
        same(predictor(image.permute(1, 2, 0).numpy()[:, :, ::-1])["instances"].get_fields(), instances)
    print("predicted")

    adapter = TracingAdapter(
        trained, [{"image": images[0]}], lambda model, batch: model.inference(batch, None, False)
    )
    with torch.no_grad():
        traced = torch.jit.trace(adapter.eval(), adapter.flattened_inputs)
        for image, instances in zip(images, expected, strict=True):
            same(adapter.outputs_schema(traced(image))[0].get_fields(), instances)
    print("traced")

    tensors = ("objectness_logits", "scores", "pred_classes")
    fields = dict.fromkeys(("proposal_boxes", "pred_boxes"), Boxes) | dict.fromkeys(tensors, torch.Tensor)
    scripted = scripting_with_instances(predictor.model, fields)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for image, instances in zip(images, expected, strict=True):
            found = scripted.inference([{"image": image}], None, False)[0]
            same({name: getattr(found, name) for name in instances.get_fields()}, instances)
    print("scripted")


def same(found: dict, expected) -> None:
    import torch

    assert len(expected) > 0
    for name, value in expected.get_fields().items():
        ours, theirs = (getattr(boxes, "tensor", boxes) for boxes in (found[name], value))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def check_lazy(output: Path) -> None:
    """An example of configs/lazy, saved as text, read again, and trained for a step from the search."""
    import torch
    from detectron2.config import LazyConfig, instantiate
    from detectron2.utils.events import EventStorage

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer

    cfg = LazyConfig.load("configs/lazy/det_digits.py")
    settings = [f"model.backbone.topology.path={output}/search/topologies.json"]
    cfg = LazyConfig.apply_overrides(cfg, [*settings, "dataloader.train.total_batch_size=2"])
    LazyConfig.save(cfg, str(output / "lazy.yaml"))
    cfg = LazyConfig.load(str(output / "lazy.yaml"))
    model = instantiate(cfg.model)
    FBNetV5Checkpointer(model).resume_or_load(f"{output}/search/model_final.pth", resume=False)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with EventStorage(0):
        sum(model(next(iter(instantiate(cfg.dataloader.train)))).values()).backward()
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    print("trained lazily")


def main(page: str, data: str, output: str) -> None:
    import torch
    from detectron2.data.datasets import register_coco_instances

    output = Path(output)
    register_coco_instances("mine_train", {}, f"{data}/index.json", data)
    programs = examples(Path(page).read_text(encoding="utf-8"))
    namespace = run(programs.pop("MultitaskSearch"), SEARCH, output)
    print("trained MultitaskSearch")
    check_search(namespace, output)
    for kind, program in programs.items():
        namespace = run(program, {**DETECTOR, "OUTPUT_DIR": str(output / kind)}, output)
        trainer = namespace["trainer"]
        assert trainer.iter == 3, trainer.iter
        model = trainer.model.eval()
        assert type(model).__name__ == kind, type(model)
        with torch.no_grad():
            (found,) = model([{"image": torch.randint(0, 256, (3, 96, 130)), "height": 192, "width": 260}])
        assert found["instances"].image_size == (192, 260)
        assert torch.isfinite(found["instances"].pred_boxes.tensor).all()
        print("trained", kind)
        cfg = namespace["cfg"]
        check_start(cfg, "backbone.bottom_up." if kind == "RetinaNet" else "backbone.")
        if kind == "GeneralizedRCNN":
            check_deployed(cfg, model)
    check_fpn("Mask R-CNN", cfg, MASK_RCNN)
    check_fpn("SemSegFPN", cfg, SEM_SEG_FPN)
    check_lazy(output)


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    main(*sys.argv[1:])
