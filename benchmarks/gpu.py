"""What only a GPU can tell: whether all is right there, what makes the host wait for it, and how fast it is.

    make gpu-check                                     # PYTHON=/path/to/python for one that has torch with CUDA
    python benchmarks/gpu.py [--budget 480] [--parts search models processes steps waits compile deterministic]

Every part is a process of its own with a deadline, and each figure is written when it is there: a part that hangs or
dies takes nothing with it but what it had still to do. The tests marked `gpu`, in three parts, run side by side; what
measures time runs alone. The results are in --output as JSON, and beside it as tables. With --quick it all runs on a
CPU, with small networks: it shows that it runs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from algorithm_cost import Probe
from common import machine, markdown
from speed import LAYOUTS, ours, timm_peer

from d2go_fbnetv5.arch import Supernet, Topology, block_costs
from d2go_fbnetv5.engine.compile import compile_blocks
from d2go_fbnetv5.engine.loop import TrainLoop
from d2go_fbnetv5.engine.precision import Precision, choose_kernels
from d2go_fbnetv5.search import CostRegularizer, MultitaskSearch
from d2go_fbnetv5.tasks import DatasetInfo, batch_images, build_task
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.zoo import create_model

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "search": "search",
    "models": "models",
    "processes": "processes",
}  # parts that are tests/gpu/test_..._on_gpu.py
# Seconds that a part may take on an H100; all tests run at once.
SECONDS = {
    "search": 90,
    "models": 90,
    "processes": 90,
    "steps": 100,
    "waits": 60,
    "compile": 60,
    "deterministic": 60,
}
TITLES = {
    "search": "Tests of the search",
    "models": "Tests of the models",
    "processes": "Tests with several processes",
    "steps": "Training steps",
    "waits": "What makes the host wait in a step",
    "compile": "MODEL.FBNETV5.COMPILE",
    "deterministic": "SOLVER.DETERMINISTIC",
}
PRECISIONS = ("float32", "TF32", "float16", "bfloat16")
NAMES = tuple(f"class {i}" for i in range(20))
Step = Callable[[], Any]


class Setting:
    """The device, and sizes that it can do in time: those of the paper's search, or on a CPU the smallest."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.device = torch.device("cpu" if quick else "cuda")
        self.family, self.stages, self.side, self.batch = ("N", 2, 96, 4) if quick else ("A", 7, 224, 48)
        self.warm, self.rounds = (1, 2) if quick else (5, 15)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Labelled samples as a loader gives them, on the host."""
        generator, side = torch.Generator().manual_seed(0), self.side
        found = []
        for i in range(count):
            corner = torch.rand(5, 2, generator=generator) * side * 0.5
            extent = torch.rand(5, 2, generator=generator) * side * 0.4 + 8
            classes = torch.randint(0, len(NAMES), (side // 32, side // 32), generator=generator)
            found.append(
                {
                    "image": torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8),
                    "image_id": i,
                    "class_label": i % 10,
                    "boxes": torch.cat([corner, corner + extent], 1),
                    "box_labels": torch.randint(0, len(NAMES), (5,), generator=generator),
                    "sem_seg": classes.repeat_interleave(32, 0).repeat_interleave(32, 1),
                }
            )
        return found

    def search(self, tasks: Callable[[Supernet], list[Any]]) -> MultitaskSearch:
        """Algorithm 4, one topology a step as on each of the paper's processes."""
        torch.manual_seed(0)
        supernet = Supernet(self.family, self.stages)
        costs = block_costs(self.family, (self.side, self.side)).matrix(self.stages)
        search = MultitaskSearch(
            supernet,
            tasks(supernet),
            samples_per_rank=1,
            cost=CostRegularizer(costs),
            preprocess=lambda batch: batch_images(batch, (120.0,) * 3, (60.0,) * 3),
        )
        return search.to(self.device, memory_format=torch.channels_last)


def all_tasks(supernet: Supernet) -> list[Any]:
    info = DatasetInfo(NAMES, NAMES, NAMES)
    return [build_task(name, supernet.channels, info) for name in ("cls", "det", "seg")]


def light_tasks(number: int) -> Callable[[Supernet], list[Any]]:
    """Heads that cost next to nothing."""

    def build(supernet: Supernet) -> list[Any]:
        paths = [f"path{3 - t % 2}" for t in range(number)]
        return [Probe(f"t{t}", path, supernet.channels[path]) for t, path in enumerate(paths)]

    return build


@contextlib.contextmanager
def arithmetic(setting: Setting, precision: str, deterministic: bool = False) -> Iterator[Precision]:
    """Compute by one of PRECISIONS."""
    # What torch does where nothing is said, which is what float32 stands for: TF32 in convolutions alone.
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    choose_kernels(setting.device, "high" if precision == "TF32" else "", deterministic, benchmark=False)
    yield Precision(setting.device, precision if precision in ("float16", "bfloat16") else None)


def loop_step(setting: Setting, model: Any, batch: list[dict[str, Any]], precision: Precision) -> Step:
    """A step of our own training loop, uploads and projection with it."""
    groups = model.param_groups(0.001) if hasattr(model, "param_groups") else model.parameters()
    optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9)
    endless = iter(lambda: batch, None)
    loop = TrainLoop(model.train(), optimizer, endless, 1, device=setting.device, precision=precision)

    def step() -> None:
        loop.step()
        if hasattr(model, "after_step"):
            model.after_step()

    return step


def plain_step(model: torch.nn.Module, precision: Precision, losses: Callable[[], torch.Tensor]) -> Step:
    """Forward, backward and update of a network, with its input on the device."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    def step() -> None:
        with precision.autocast():
            loss = losses()
        optimizer.zero_grad()
        precision.backward(loss)
        precision.step(optimizer)

    return step


def supernet_step(setting: Setting, precision: Precision, layout: str, compiled: bool = False) -> Step:
    """A step of the supernet alone, of a random topology each time, the same ones for all variants."""
    torch.manual_seed(0)
    network = (
        Supernet(setting.family, setting.stages).to(setting.device, memory_format=LAYOUTS[layout]).train()
    )
    if compiled:
        compile_blocks(network)
    images = torch.randn(setting.batch, 3, setting.side, setting.side, device=setting.device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    generator = torch.Generator().manual_seed(1)

    def losses() -> torch.Tensor:
        topology = Topology(torch.rand(setting.stages, 4, generator=generator) < 0.5)
        return sum(x.float().square().mean() for x in network(images, topology).values())

    return plain_step(network, precision, losses)


def classifier_step(setting: Setting, model: torch.nn.Module, precision: Precision, layout: str) -> Step:
    """A step of a classifier, images in and logits out."""
    model = model.to(setting.device, memory_format=LAYOUTS[layout]).train()
    images = torch.randn(setting.batch, 3, setting.side, setting.side, device=setting.device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    labels = torch.arange(setting.batch, device=setting.device)
    return plain_step(model, precision, lambda: F.cross_entropy(model(images).float(), labels))


def timed(setting: Setting, steps: Mapping[str, Step], rounds: int = 0) -> dict[str, dict[str, float]]:
    """Median milliseconds of steps that take turns, how long the host takes to ask for one, and the peak of memory."""
    peak = {}
    for name, step in steps.items():
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(setting.warm):
            step()
        setting.wait()
        if setting.device.type == "cuda":
            peak[name] = torch.cuda.max_memory_allocated() / 2**30
    took: dict[str, list[float]] = {name: [] for name in steps}
    host: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds or setting.rounds):
        for name, step in steps.items():
            since = time.perf_counter()
            step()
            host[name].append(time.perf_counter() - since)
            setting.wait()
            took[name].append(time.perf_counter() - since)
    return {
        name: {
            "images/s": setting.batch / statistics.median(took[name]),
            "ms": 1e3 * statistics.median(took[name]),
            "least ms": 1e3 * min(took[name]),
            "most ms": 1e3 * max(took[name]),
            "host ms": 1e3 * statistics.median(host[name]),
            **({"peak GiB": peak[name]} if name in peak else {}),
        }
        for name in steps
    }


class Results:
    """Rows of a part, each written at once; an error of one measurement is its row."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.end = file, time.monotonic() + seconds

    def add(self, **row: Any) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)

    @contextlib.contextmanager
    def measuring(self, **what: Any) -> Iterator[None]:
        if time.monotonic() > self.end - 5:
            self.add(**what, error="left out: no time")
            raise OutOfTimeError
        try:
            yield
        except (Exception, OutOfTimeError) as error:  # whatever it is, the others are still to be measured
            if isinstance(error, OutOfTimeError):
                raise
            self.add(**what, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class OutOfTimeError(BaseException):
    """Ends a part."""


def steps(setting: Setting, results: Results) -> None:
    """Algorithm 4 by the number of tasks, a classifier beside timm's, the supernet in all precisions and layouts."""
    for precision in ("float32", "bfloat16"):
        what = {"step": "Algorithm 4, light heads", "precision": precision, "layout": "channels last"}
        with results.measuring(**what), arithmetic(setting, precision) as used:
            batch = setting.samples(setting.batch)
            found = timed(
                setting,
                {
                    str(number): loop_step(setting, setting.search(light_tasks(number)), batch, used)
                    for number in (1, 3, 6)
                },
            )
            for number, row in found.items():
                results.add(**what, T=int(number), **row, **{"of T = 1": row["ms"] / found["1"]["ms"]})
    for precision in PRECISIONS:
        for layout in LAYOUTS:
            what = {"step": "FBNetV3-B", "precision": precision, "layout": layout}
            with results.measuring(**what), arithmetic(setting, precision) as used:
                networks = {"ours": ours()}
                with contextlib.suppress(ImportError):
                    networks["timm"] = timm_peer()
                found = timed(
                    setting,
                    {name: classifier_step(setting, net, used, layout) for name, net in networks.items()},
                )
                for name, row in found.items():
                    ratio = {"of timm's": row["ms"] / found["timm"]["ms"]} if "timm" in found else {}
                    note = {} if "timm" in found else {"note": "timm is not installed"}
                    results.add(**what | {"step": f"FBNetV3-B, {name}"}, **row, **ratio, **note)
    for precision in PRECISIONS:
        for layout in LAYOUTS:
            what = {"step": "supernet", "precision": precision, "layout": layout}
            with results.measuring(**what), arithmetic(setting, precision) as used:
                found = timed(setting, {"supernet": supernet_step(setting, used, layout)})
                results.add(**what, **found["supernet"])
    with results.measuring(step="supernet, CUDNN_BENCHMARK"), arithmetic(setting, "bfloat16") as used:
        torch.backends.cudnn.benchmark = True
        found = timed(setting, {"supernet": supernet_step(setting, used, "channels last")})
        torch.backends.cudnn.benchmark = False
        results.add(
            step="supernet, CUDNN_BENCHMARK",
            precision="bfloat16",
            layout="channels last",
            **found["supernet"],
        )
    for precision in PRECISIONS:
        what = {"step": "Algorithm 4: cls, det, seg", "precision": precision, "layout": "channels last"}
        with results.measuring(**what), arithmetic(setting, precision) as used:
            step = loop_step(setting, setting.search(all_tasks), setting.samples(setting.batch), used)
            results.add(**what, **timed(setting, {"search": step}, rounds=setting.rounds // 2)["search"])


def waits(setting: Setting, results: Results) -> None:
    """Synchronisations of a step by the line that asks for them, and how busy the GPU is."""
    tasks = ("CLS", "DET", "SEG")
    models: dict[str, Callable[[], Any]] = {
        f"FBNetV5-{setting.family}-{task}": lambda task=task: create_model(
            f"FBNetV5-{setting.family}-{task}", num_classes=len(NAMES)
        ).to(setting.device, memory_format=torch.channels_last)
        for task in tasks
    }
    models = {
        "search: cls, det, seg": lambda: setting.search(all_tasks),
        "search: light heads": lambda: setting.search(light_tasks(3)),
        **models,
    }
    for name, build in models.items():
        for precision in ("float32", "bfloat16"):
            with results.measuring(model=name, precision=precision), arithmetic(setting, precision) as used:
                step = loop_step(setting, build(), setting.samples(setting.batch), used)
                row = {
                    "batch": setting.batch,
                    **timed(setting, {"it": step}, rounds=setting.rounds // 2)["it"],
                }
                if setting.device.type == "cuda":
                    row |= busy(step, row["ms"])
                places = waiting_places(setting, step)
                results.add(
                    model=name,
                    precision=precision,
                    waits=sum(places.values()),
                    **row,
                    places=dict(places.most_common()),
                )


def waiting_places(setting: Setting, step: Step) -> collections.Counter[str]:
    """Count a step's waits as torch's own debug mode sees them, by file and line."""
    if setting.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    if setting.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    setting.wait()
    return collections.Counter(
        f"{os.sep.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )


def busy(step: Step, milliseconds: float) -> dict[str, float]:
    """Return the share of a step's time in which a kernel runs, by the profiler, and how many kernels there are."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    inside = sum(event.time_range.elapsed_us() for event in kernels) / 1e3
    return {"kernels": len(kernels), "busy ms": inside, "busy share": inside / milliseconds}


def deterministic(setting: Setting, results: Results) -> None:
    """The cost of kernels that repeat their numbers, beside those that are fastest."""
    for name, tasks in (("cls, seg", lambda net: all_tasks(net)[::2]), ("cls, det, seg", all_tasks)):
        found = {}
        for repeats in (False, True):
            what = {"search": name, "DETERMINISTIC": repeats}
            with results.measuring(**what), arithmetic(setting, "float32", repeats) as used:
                step = loop_step(setting, setting.search(tasks), setting.samples(setting.batch), used)
                since = time.perf_counter()
                step()
                setting.wait()
                first = time.perf_counter() - since
                found[repeats] = timed(setting, {"it": step}, rounds=setting.rounds // 2)["it"]
                results.add(
                    **what,
                    **{"first step, s": first},
                    **found[repeats],
                    **{"of the fastest": found[repeats]["ms"] / found[False]["ms"]},
                )


def compiled(setting: Setting, results: Results) -> None:
    """Compiled blocks beside blocks as they are."""
    for precision in ("bfloat16", "float32"):
        with results.measuring(precision=precision), arithmetic(setting, precision) as used:
            plain = supernet_step(setting, used, "channels last")
            fast = supernet_step(setting, used, "channels last", compiled=True)
            since = time.perf_counter()
            for _ in range(setting.warm):
                fast()
            setting.wait()
            seconds = time.perf_counter() - since
            found = timed(setting, {"plain": plain, "compiled": fast})
            for name, row in found.items():
                results.add(
                    precision=precision,
                    blocks=name,
                    **row,
                    **{"of plain": row["ms"] / found["plain"]["ms"]},
                    **({"first steps, s": seconds} if name == "compiled" else {}),
                )


MEASUREMENTS = {"steps": steps, "waits": waits, "deterministic": deterministic, "compile": compiled}


# ------------------------------------------------------------------------------------------------ all parts


def start(part: str, args: argparse.Namespace, folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Start a part's process, whose rows go to folder/PART.jsonl and whose output to folder/PART.log."""
    rows = folder / f"{part}.jsonl"
    environment = dict(os.environ, OMP_NUM_THREADS="1" if args.quick else "4")
    environment.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # before cuBLAS is used, for SOLVER.DETERMINISTIC
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if part in TESTS:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            f"tests/gpu/test_{TESTS[part]}_on_gpu.py",
        ]
        command += ["-p", "no:cacheprovider", *(["-k", args.tests] if args.tests else [])]
        environment["GPU_CHECK_RESULTS"] = str(rows)
        if args.quick:
            environment["GPU_CHECK_DEVICE"] = "cpu"
    else:
        command = [sys.executable, __file__, "--part", part, "--rows", str(rows), "--seconds", str(seconds)]
        command += ["--quick"] if args.quick else []
    with (folder / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def run(parts: Sequence[str], args: argparse.Namespace, folder: Path, until: float) -> dict[str, str]:
    """Run parts side by side and say of each how it ended."""
    ended, running = {}, {}
    for part in parts:
        seconds = min(SECONDS[part] * (20 if args.quick else 1), until - time.monotonic())
        if seconds < 10:
            ended[part] = "left out: no time"
            continue
        running[part] = (time.monotonic() + seconds, start(part, args, folder, seconds))
    for part, (deadline, process) in running.items():
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
            ended[part] = "done" if status == 0 else f"status {status}"
        except subprocess.TimeoutExpired:
            ended[part] = "stopped at its deadline"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes of its own, too
        process.wait()
        print(f"{part}: {ended[part]}", flush=True)
    return ended


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def report(parts: Sequence[str], rows: Mapping[str, list[dict[str, Any]]], ended: Mapping[str, str]) -> str:
    """All tables as Markdown."""
    tables = []
    for part in parts:
        shown = [{key: value for key, value in row.items() if key != "places"} for row in rows[part]]
        columns = list(dict.fromkeys(key for row in shown for key in row))
        tables.append(f"### {TITLES[part]}\n\n({ended[part]})")
        if shown:
            tables.append(markdown(shown, columns))
        for row in rows[part]:
            if row.get("places"):
                lines = [f"- {count} x {place}" for place, count in row["places"].items()]
                tables.append("\n".join([f"{row['model']}, {row['precision']}:\n", *lines]))
    return "\n\n".join(tables) + "\n"


def main() -> None:
    begun = time.monotonic()
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--quick", action="store_true", help="on a CPU: shows that it runs, no more")
    parse.add_argument(
        "--budget", type=float, default=0, help="seconds for all of it (480; 3600 with --quick)"
    )
    parse.add_argument("--parts", nargs="+", choices=TITLES, default=list(TITLES))
    parse.add_argument("--tests", default="", help="an expression for pytest's -k, of the tests to run")
    parse.add_argument("--output", type=Path, default=Path("output/benchmarks/gpu.json"), help="JSON file")
    for name in ("--part", "--rows", "--seconds"):
        parse.add_argument(name, help=argparse.SUPPRESS)
    args = parse.parse_args()
    if args.part:
        torch.set_num_threads(1 if args.quick else 4)
        setting, results = Setting(args.quick), Results(Path(args.rows), float(args.seconds))
        with contextlib.suppress(OutOfTimeError):
            MEASUREMENTS[args.part](setting, results)
        return
    if not args.quick and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here; --quick shows on a CPU that the checks run")
    until = begun + (args.budget or (3600 if args.quick else 480)) - 5
    device = "cpu" if args.quick else torch.cuda.get_device_name()
    ended: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        groups = [
            [part for part in args.parts if part in TESTS],
            *([part] for part in args.parts if part not in TESTS),
        ]
        for group in groups:
            ended |= run(group, args, folder, until)
        rows = {part: read(folder / f"{part}.jsonl") for part in args.parts}
        logs = {part: (folder / f"{part}.log") for part in args.parts}
        for part, log in logs.items():
            if ended[part] != "done" and log.is_file():
                print(
                    f"\n--- {part}: {ended[part]}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr
                )
    tables = report(args.parts, rows, ended)
    content = {"machine": {**machine(), "device": device, "cuda": torch.version.cuda}, "ended": ended, **rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, json.dumps(content, indent=1) + "\n")
    write_atomically(args.output.with_suffix(".md"), tables)
    print(f"\n{tables}\n{args.output}, {time.monotonic() - begun:.0f} s")
    failed = [row["test"] for part in TESTS for row in rows.get(part, []) if row.get("outcome") == "failed"]
    if failed or any(row.get("error") for part in rows for row in rows[part]):
        sys.exit(f"failed: {', '.join(failed) or 'measurements, see error'}")


if __name__ == "__main__":
    main()
