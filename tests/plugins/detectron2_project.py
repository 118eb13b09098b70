"""Runs the programs of docs/detectron2.md on Detectron2 alone, with D2Go and mobile_cv out of reach: a search, and
detectors that start from it; and what goes wrong without our trainer, which must say so. Arguments: the page, the
folder of a multitask data set (which is COCO's format too), the output folder."""

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


def check_start(namespace: dict, backbone: str) -> None:
    """The same model with the search's weights loaded, and nothing trained."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer

    cfg = namespace["cfg"]
    model = build_model(cfg)
    FBNetV5Checkpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    search = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    weights = {n.removeprefix(backbone): v for n, v in model.state_dict().items() if n.startswith(backbone)}
    assert len(weights) > 20
    assert all(torch.equal(value, search[f"supernet.{name}"]) for name, value in weights.items())
    if backbone == "backbone.":
        load = DetectionCheckpointer(model).resume_or_load
        refused("DetectionCheckpointer", "FBNetV5Checkpointer", lambda: load(cfg.MODEL.WEIGHTS, resume=False))


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
        check_start(namespace, "backbone.bottom_up." if kind == "RetinaNet" else "backbone.")


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    main(*sys.argv[1:])
