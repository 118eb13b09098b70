"""Runs the README's project on Detectron2 alone, with D2Go and mobile_cv out of reach. Arguments: the README, the
folder of a multitask data set (which is COCO's format too), the meta-architecture, the output folder."""

import sys
from pathlib import Path


class Blocked:
    """An import hook: what works here works without these."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("d2go", "mobile_cv"):
            raise ImportError(f"blocked: {name}")


def example(readme: str, kind: str) -> str:
    """The README's program: of its two blocks, the second replaces the line that makes it a Lite R-CNN."""
    project, retinanet = [
        part.split("```")[0]
        for part in readme.split("```py\n")[1:]
        if "BACKBONE" in part or "DefaultTrainer" in part
    ]
    if kind == "GeneralizedRCNN":
        return project
    (line,) = [line for line in project.splitlines() if line.startswith("use_lite_rcnn(cfg)")]
    return project.replace(line, retinanet)


def main(readme: str, data: str, kind: str, output: str) -> None:
    import torch
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("mine_train", {}, f"{data}/index.json", data)
    small = {
        "MODEL.DEVICE": "cpu",
        "MODEL.FBNETV5.FAMILY": "N",
        "MODEL.FBNETV5.TOPOLOGY": "",
        "MODEL.RETINANET.NUM_CLASSES": 10,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 5,
        "SOLVER.STEPS": (),
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": output,
    }
    settings = f"cfg.merge_from_list({[item for pair in small.items() for item in pair]!r})\n"
    setup, training = example(Path(readme).read_text(encoding="utf-8"), kind).split("trainer = ")
    namespace = {"__name__": "readme"}
    exec(compile(f"{setup}{settings}trainer = {training}", "README.md", "exec"), namespace)

    trainer = namespace["trainer"]
    assert trainer.iter == 5, trainer.iter
    model = trainer.model.eval()
    assert type(model).__name__ == kind, type(model)
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(0, 256, (3, 96, 130)), "height": 192, "width": 260}])
    assert output["instances"].image_size == (192, 260)
    assert torch.isfinite(output["instances"].pred_boxes.tensor).all()
    print("trained", kind)


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    main(*sys.argv[1:])
