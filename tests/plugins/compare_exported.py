"""Outputs of an exported model against the eager model's, at two sizes. As "eager" it writes the cases by D2Go; as
"torchscript" or "torchscript_int8" it loads the saved model with torch and torchvision alone.

int8 is compared as strictly as the rest, on the engine that the model was made for (QUANTIZATION.BACKEND). On another
one a layer rounds one value in ten thousand to the next integer, and scores come out up to .03 apart.
"""

import sys

import torch
import torchvision  # noqa: F401 (has the operators of a detector)

SIZES = [(64, 64), (70, 101)]


def write_cases(path: str, config: str, *settings: str) -> None:
    from d2go_fbnetv5.plugins.stand_ins import install_stand_ins

    install_stand_ins()
    from d2go.export.exporter import convert_model

    from d2go_fbnetv5.runner import FBNetV5Runner

    cfg = FBNetV5Runner.get_default_cfg()
    cfg.merge_from_file(config)
    cfg.merge_from_list(list(settings))
    runner = FBNetV5Runner()
    runner._initialize(cfg)
    model = runner.build_model(cfg, eval_only=True)
    models = {"torchscript": model}
    if cfg.MODEL.META_ARCHITECTURE == "LiteRCNN":
        loader = runner.build_detection_test_loader(cfg, list(cfg.DATASETS.TRAIN))
        models["torchscript_int8"] = convert_model(cfg, model, "torchscript_int8", loader)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
    cases = {"engine": cfg.QUANTIZATION.BACKEND}
    with torch.no_grad():
        for name, eager in models.items():
            outputs = [eager([{"image": image}])[0] for image in images]
            cases[name] = [(image, _tensors(output)) for image, output in zip(images, outputs, strict=True)]
    torch.save(cases, path)


def _tensors(output: dict) -> list[torch.Tensor]:
    if "instances" not in output:
        return list(output.values())
    instances = output["instances"]
    return [instances.pred_boxes.tensor, instances.pred_classes, instances.scores]


def compare(kind: str, cases: str, model: str) -> None:
    known = torch.load(cases)
    torch.backends.quantized.engine = known["engine"]
    exported = torch.jit.load(model)
    count = 0
    for image, expected in known[kind]:
        with torch.no_grad():
            found = exported(image if len(expected) == 3 else image.float())
        found = [found] if isinstance(found, torch.Tensor) else list(found)
        assert expected[0].numel() > 0
        for theirs, ours in zip(found, expected, strict=False):  # a detector gives the image's size as well
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
        count += 1
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & {"d2go", "detectron2", "mobile_cv", "d2go_fbnetv5"}
    print("compared", count)


if __name__ == "__main__":
    write_cases(*sys.argv[2:]) if sys.argv[1] == "eager" else compare(*sys.argv[1:])
