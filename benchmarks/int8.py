"""What 8 bits cost: metrics of the files that D2Go exports in floats, in 8 bits, and in 8 bits after training for them.

    OMP_NUM_THREADS=1 python benchmarks/int8.py cls det seg
    OMP_NUM_THREADS=1 python benchmarks/int8.py output/cls_digits output/det_digits output/seg_digits

Each argument is the folder of a training by our own trainer, or the task of a model that comes with the package. In an
interpreter that has D2Go, its exporter writes the weights in floats and quantised after training (16 images of the
training set say the ranges), its train_net trains on with QUANTIZATION.QAT for --steps steps, and the exporter writes
that in 8 bits. Each file is run by a process that has torch and torchvision alone, on the same images, all of the
evaluation set, and judged as the training was.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 (has the operators of a detector)

ENGINE = "fbgemm"  # as QUANTIZATION.BACKEND
METRICS = {"cls": "top1", "det": "AP", "seg": "mIoU"}
HOSTS = ("d2go", "detectron2", "mobile_cv", "d2go_fbnetv5")


def infer(model: str, images: str, outputs: str) -> None:
    """In a process of its own: what the file gives for each image, and the seconds of the processor that it took."""
    torch.backends.quantized.engine = ENGINE
    network = torch.jit.load(model)
    scenes, found = torch.load(images, weights_only=True), []
    with torch.no_grad():
        for image in scenes[:4]:  # the first ones are slow
            network(image.float())
        began = time.process_time()
        for image in scenes:
            output = network(image.float())
            if isinstance(output, torch.Tensor):  # probabilities, or scores of which the best class is kept
                output = [output.argmax(0).byte() if output.dim() == 3 else output]
            found.append(list(output))
    seconds = time.process_time() - began
    assert not {name.split(".")[0] for name in sys.modules} & set(HOSTS)
    torch.save({"found": found, "seconds": seconds}, outputs)


def run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def d2go(tool: str, training: Path, output: Path, settings: Sequence[Any], *options: str) -> None:
    runner = ["--runner", "d2go_fbnetv5.runner.FBNetV5Runner", "--config-file", training / "config.yaml"]
    output_dir = ["--output-dir", output, "MODEL_EMA.ENABLED", "False"]
    run("-m", "d2go_fbnetv5.d2go", tool, *options, *runner, *output_dir, *settings)


def for_int8(steps: int, rate: float, batch: int) -> list[Any]:
    """Settings of a fine-tuning: batch norms keep their statistics, and ranges rest in its last quarter."""
    qat = "QUANTIZATION.QAT."
    return [
        *(f"{qat}ENABLED", True, f"{qat}START_ITER", steps // 10, f"{qat}ENABLE_OBSERVER_ITER", 0),
        *(f"{qat}FREEZE_BN_ITER", 0, f"{qat}DISABLE_OBSERVER_ITER", steps * 3 // 4),
        *("SOLVER.BASE_LR", rate, "SOLVER.MAX_ITER", steps, "SOLVER.CHECKPOINT_PERIOD", steps // 2),
        *("SOLVER.WARMUP_ITERS", steps // 10, "TEST.FINAL_EVAL", False, "SOLVER.IMS_PER_BATCH", batch),
    ]


def shipped(task: str, folder: Path) -> Path:
    """The folder of a training that has ended with the weights that come with the package."""
    from common import CONFIGS

    from d2go_fbnetv5.arch.topology_file import save_topologies
    from d2go_fbnetv5.engine.config import load_cfg
    from d2go_fbnetv5.engine.predictor import from_run, open_network
    from d2go_fbnetv5.utils.shipped import pretrained_folder

    source, training = pretrained_folder() / f"FBNetV5-N-{task.upper()}", folder / "shipped" / task
    training.mkdir(parents=True, exist_ok=True)
    network, model, file = open_network(source), from_run(source).model, training / "topologies.json"
    entry = {"outputs": list(model.in_features), "topology": network.topology.to_dict()}
    save_topologies(file, network.family, network.topology.num_stages, (96, 96), {task: entry})
    cfg = load_cfg(CONFIGS / task / f"{task}_digits.yaml", ["MODEL.FBNETV5.TOPOLOGY", str(file)])
    (training / "config.yaml").write_text(cfg.dump())
    network.write(training, type(model))
    torch.save({"model": model.state_dict()}, training / "model_final.pth")
    return training


def measure(
    training: Path, folder: Path, steps: int, factor: float, batch: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """A row of the table."""
    from common import mean_and_spread

    from d2go_fbnetv5.engine.build import build_data
    from d2go_fbnetv5.engine.config import load_cfg
    from d2go_fbnetv5.engine.predictor import from_run

    cfg = load_cfg(training / "config.yaml")
    data, network = build_data(cfg, cfg.SEED), from_run(training)
    samples = [sample for batch in data.eval_batches() for sample in batch]
    evaluator = network.model.evaluator(data.info)
    images, folder = folder / "images.pt", folder / network.task
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([sample["image"] for sample in samples], images)

    weights = ["MODEL.WEIGHTS", training / "model_final.pth"]
    types = ["--predictor-types", "torchscript", "torchscript_int8"]
    files = {"floats": "after/torchscript", "int8 after": "after/torchscript_int8"}
    if not (folder / files["int8 after"] / "model.jit").exists():
        d2go("exporter", training, folder / "after", weights, *types)
    if steps:
        qat = for_int8(steps, cfg.SOLVER.BASE_LR * factor, batch or cfg.SOLVER.IMS_PER_BATCH)
        for seed in seeds:
            own, name = [*qat, "SEED", seed], f"while, seed {seed}"
            files[name] = f"while_{seed}/torchscript_int8"
            d2go("train_net", training, folder / f"qat_{seed}", [*own, *weights], "--resume")
            trained = ["MODEL.WEIGHTS", folder / f"qat_{seed}" / "model_final.pth"]
            d2go("exporter", training, folder / f"while_{seed}", [*own, *trained], types[0], types[2])
    row: dict[str, Any] = {"task": network.task, "metric": METRICS[network.task], "images": len(samples)}
    for column, file in files.items():
        path = folder / file / "outputs.pt"
        if file.startswith("while") or not path.exists():
            run(__file__, "infer", folder / file / "model.jit", images, path)
        outputs = torch.load(path, weights_only=True)
        evaluator.reset()
        evaluator.process(samples, [as_prediction(network.task, found) for found in outputs["found"]])
        row[column] = 100 * evaluator.evaluate()[METRICS[network.task]]
        row[f"{column}, ms"] = 1000 * outputs["seconds"] / len(samples)
    if steps:
        row["int8 while"] = mean_and_spread([row[f"while, seed {seed}"] for seed in seeds])
    return row


def as_prediction(task: str, found: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    if task == "det":
        return {"boxes": found[0], "labels": found[1], "scores": found[2]}
    return {"class_scores": found[0]} if task == "cls" else {"sem_seg": found[0].long()}


def main() -> None:
    from common import finish, parser

    arguments = parser(__doc__, "output/int8.json")
    arguments.add_argument("trainings", nargs="+", help="folders of our own trainings, or cls, det or seg")
    arguments.add_argument("--folder", type=Path, default=Path("output/int8"), help="of what is made")
    arguments.add_argument(
        "--steps", type=int, default=200, help="of the training for 8 bits (default 200), 0: none"
    )
    arguments.add_argument("--batch", type=int, default=0, help="its images a step (default the training's)")
    arguments.add_argument("--rate", type=float, default=0.03, help="its learning rate over the training's")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0], help="of that training")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    steps = min(args.steps, 10) if args.quick else args.steps
    runs = [shipped(run, args.folder) if run in METRICS else Path(run) for run in args.trainings]
    rows = [measure(run, args.folder, steps, args.rate, args.batch, args.seeds) for run in runs]
    columns = ["task", "metric", "images", "floats", "int8 after", "int8 while"]
    finish(args.output, {"What 8 bits cost": (rows, columns)}, steps=steps, rate=args.rate, seeds=args.seeds)


if __name__ == "__main__":
    infer(*sys.argv[2:]) if sys.argv[1:2] == ["infer"] else main()
