import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2go_fbnetv5.tasks import DatasetInfo, Task, build_task, list_tasks, register_task

INFO = DatasetInfo(
    class_names=("a", "b"), box_names=("x",), sem_seg_names=("p", "q"), depth_units=("metres",)
)
CHANNELS = {"path0": 4, "path1": 6, "path2": 8, "path3": 10}


def test_the_three_tasks_of_the_paper_and_depth_are_registered():
    assert {"cls", "det", "seg", "depth"} <= set(list_tasks())
    for name in ("cls", "det", "seg", "depth"):
        task = build_task(name, CHANNELS, INFO)
        assert task.name == name
        assert task.higher_is_better == (name != "depth")
        assert task.primary_metric in task.evaluator(INFO).evaluate()


def test_in_features_are_those_of_appendix_f1():
    features = {name: build_task(name, CHANNELS, INFO).in_features for name in ("cls", "det", "seg")}
    assert features == {"cls": ("path3",), "det": ("path2",), "seg": ("path2",)}


@pytest.mark.parametrize("name", ["det", "seg"])
def test_a_head_reads_the_path_that_it_is_told_to(name):
    task = build_task(name, CHANNELS, INFO, feature="path1").eval()
    assert task.in_features == ("path1",) and type(task).in_features == ("path2",)
    batch = [{"image": torch.zeros(3, 64, 96)}]
    (output,) = task({"path1": torch.rand(1, 6, 8, 12)}, batch)
    assert output["sem_seg" if name == "seg" else "boxes"].shape[-1] == (96 if name == "seg" else 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cat", {}, "unknown task 'cat'; allowed are .*cls.*det.*seg"),
        ("cls", {"pool_chanels": 3}, "no option 'pool_chanels'; its options are .*pool_channels"),
        ("cls", {"pool_channels": 0}, "'pool_channels' of task 'cls' is 0, allowed: 1 or more"),
        (
            "cls",
            {"pool_channels": "many"},
            "'pool_channels' of task 'cls' is 'many', allowed: a whole number",
        ),
        ("cls", {"pool_channels": True}, "'pool_channels' of task 'cls' is True, allowed: a whole number"),
        ("cls", {"dropout": 1.5}, "'dropout' of task 'cls' is 1.5, allowed: 0 or more and at most 1"),
        ("det", {"anchor_sizes": 32}, "'anchor_sizes' of task 'det' is 32, allowed: a list"),
        (
            "det",
            {"anchor_sizes": [32, "big"]},
            r"'anchor_sizes' of task 'det' is .*'big'.*each item a finite number",
        ),
        ("det", {"anchor_ratios": [1.0, -1.0]}, "both must hold positive numbers"),
        ("det", {"anchor_sizes": []}, "both must hold positive numbers"),
        ("det", {"score_thresh": 2}, "'score_thresh' of task 'det' is 2.0, allowed: 0 or more"),
        (
            "det",
            {"feature": "path4"},
            "'feature' of task 'det' is 'path4'; allowed: path0, path1, path2, path3",
        ),
        ("seg", {"kernel_size": 2}, "'kernel_size' of task 'seg' is 2; it must be odd"),
    ],
)
def test_a_wrong_name_or_option_is_named_with_what_is_allowed(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_task(name, CHANNELS, INFO, **options)


@pytest.mark.parametrize(
    ("name", "field"), [("cls", "class_names"), ("det", "box_names"), ("seg", "sem_seg_names")]
)
def test_a_data_set_without_the_needed_names_is_refused(name, field):
    with pytest.raises(ValueError, match=f"task '{name}' needs {field}, but the data set has none"):
        build_task(name, CHANNELS, DatasetInfo())


def test_a_missing_feature_is_named():
    with pytest.raises(
        ValueError, match=r"task 'cls' needs the features \['path3'\]; the network has \['path2'\]"
    ):
        build_task("cls", {"path2": 8}, INFO)


def test_a_feature_of_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="'feature' of task 'det' is 'top'; allowed: path2"):
        build_task("det", {"path2": 8, "top": 4}, INFO, feature="top")


def test_lists_and_integers_of_a_config_are_taken_for_tuples_and_floats():
    task = build_task("det", CHANNELS, INFO, anchor_sizes=[16, 32], anchor_ratios=[1], score_thresh=0)
    assert task.rpn.anchor_generator.sizes == ((16.0, 32.0),)
    assert task.rpn.head.cls_logits.out_channels == 2


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="task 'cls' is registered already"):
        register_task("cls")(type("Other", (Task,), {}))


def test_a_fourth_task_is_one_class_and_one_registration():
    class MeanError:
        def reset(self):
            self.errors = {}

        def process(self, inputs, outputs):
            for sample, output in zip(inputs, outputs, strict=True):
                if "boxes" in sample:
                    self.errors[sample["image_id"]] = abs(float(output["count"]) - len(sample["boxes"]))

        def evaluate(self):
            return {"mean_error": sum(self.errors.values()) / max(len(self.errors), 1)}

    @register_task("count")
    class Count(Task):
        in_features = ("path3",)
        primary_metric = "mean_error"
        higher_is_better = False

        def __init__(self, channels, info, scale: float = 1.0):
            super().__init__()
            self.scale = scale
            self.fc = nn.Linear(channels["path3"], 1)

        def forward(self, features, batch):
            counts = self.scale * self.fc(features["path3"].mean((2, 3))).squeeze(1)
            if not self.training:
                return [{"count": count} for count in counts]
            labelled = [i for i, sample in enumerate(batch) if "boxes" in sample]
            truth = torch.tensor([float(len(batch[i]["boxes"])) for i in labelled])
            return {"loss_count": F.smooth_l1_loss(counts[labelled], truth)} if labelled else {}

        def evaluator(self, info):
            evaluator = MeanError()
            evaluator.reset()
            return evaluator

    torch.manual_seed(0)
    task = build_task("count", CHANNELS, INFO, scale=2.0)
    assert "count" in list_tasks()
    features = {"path3": torch.randn(4, 10, 2, 2)}
    batch = [{"image_id": i, "boxes": torch.zeros(i, 4)} for i in range(3)] + [{"image_id": 3}]
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        sum(task(features, batch).values()).backward()
        optimizer.step()
    evaluator = task.eval().evaluator(INFO)
    with torch.no_grad():
        evaluator.process(batch, task(features, batch))
    assert evaluator.evaluate()["mean_error"] < 0.1
    with pytest.raises(ValueError, match="task 'count' has no option 'scales'; its options are .scale"):
        build_task("count", CHANNELS, INFO, scales=1.0)
