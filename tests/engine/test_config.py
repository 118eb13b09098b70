import pytest
import yaml
from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch import BlockCosts, build_family
from d2go_fbnetv5.arch.latency_table import write_latency_table
from d2go_fbnetv5.engine.config import find_config, get_cfg, load_cfg
from d2go_fbnetv5.engine.defaults import add_fbnetv5_config, detectron2_config
from d2go_fbnetv5.engine.search_recipe import search_arguments
from d2go_fbnetv5.engine.train import prepare
from d2go_fbnetv5.engine.validate import scale_to_world_size
from d2go_fbnetv5.search import search_class
from d2go_fbnetv5.tasks.base import DatasetInfo


def test_base_file_then_file_then_options(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 10, GAMMA: 0.3}\n")
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20, WEIGHT_DECAY: 1e-5}\n")
    cfg = load_cfg(child, ["SOLVER.GAMMA", "0.2"])
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MAX_ITER, solver.WEIGHT_DECAY, solver.GAMMA) == (0.5, 20, 1e-5, 0.2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("SOLVER: {BASE_LRR: 1.0}", "unknown key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR"),
        ("BASE_LR: 1.0", "unknown key BASE_LR; did you mean SOLVER.BASE_LR"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER must be of type int .* found 'many'"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER must be of type int .* found 1.5"),
        ("SOLVER: {MAX_ITER: True}", "SOLVER.MAX_ITER must be of type int .* found True"),
        ("SOLVER: 3", "SOLVER is a group of keys, found the value 3"),
        ("SOLVER: [", "not plain YAML"),
        ("- a\n- b", "mapping"),
        ("", "mapping"),
        ("a: !!python/object/apply:os.system ['true']", "not plain YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_its_name(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_cfg(file)
    assert str(file) in str(error.value)


def test_a_missing_base_and_a_missing_file_name_the_file(tmp_path):
    file = tmp_path / "child.yaml"
    file.write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_cfg(file)
    with pytest.raises(FileNotFoundError, match=r"search_digits\.yaml"):
        load_cfg(tmp_path / "nowhere.yaml")


def test_values_take_the_type_of_their_key():
    cfg = load_cfg(
        None,
        ["SOLVER.BASE_LR", "1", "SOLVER.STEPS", "[3, 5]", "OUTPUT_DIR", "2024", "MODEL.WEIGHTS", "a.pth"],
    )
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.SOLVER.STEPS == (3, 5)
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("2024", "a.pth")


def test_free_groups_take_new_keys_from_files_and_options(tmp_path):
    file = tmp_path / "heads.yaml"
    file.write_text("SEARCH: {HEADS: {det: {hidden: 64}}}")
    cfg = load_cfg(file, ["SEARCH.HEADS.det.hidden", "32", "SEARCH.HEADS.seg.kernel", "3"])
    assert cfg.SEARCH.HEADS.det.hidden == 32
    assert cfg.SEARCH.HEADS.seg.kernel == 3


@pytest.mark.parametrize("opts", [["SOLVER.BASE_LR"], ["SOLVER", "1", "SOLVER.BASE_LR", "1"]])
def test_options_that_are_no_pairs_of_key_and_value(opts):
    with pytest.raises(ValueError, match="SOLVER"):
        load_cfg(None, opts)


def test_recipes_are_found_by_name_and_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("search.yaml", "search_digits.yaml", "configs/search.yaml"):
        assert find_config(name).is_file()
        assert load_cfg(name).MODEL.META_ARCHITECTURE == "MultitaskSearch"


def test_search_yaml_is_the_papers_recipe():
    cfg = load_cfg("search.yaml")
    solver, search = cfg.SOLVER, cfg.SEARCH
    assert cfg.MODEL.FBNETV5.FAMILY == "A"
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE, search.SAMPLES_PER_RANK) == (768, 16, 1)
    assert (solver.MAX_ITER, solver.BASE_LR, solver.STEPS, solver.GAMMA) == (9375, 0.96, (3125,), 0.1)
    assert (search.ARCH_WARMUP_ITERS, search.ARCH_LR_FACTOR, search.INIT_PROB) == (6250, 0.01, 0.5)
    assert (search.COST.TARGET, search.LOSS_WINDOW) == (0.5, 200)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE) == ((256,), [224, 224])


def test_our_keys_extend_another_hosts_config_and_leave_its_own():
    class OtherNode(CfgNode):
        pass

    cfg = OtherNode(detectron2_config())
    cfg.MODEL_EMA = OtherNode({"ENABLED": False, "DECAY": 0.5})
    cfg.SOLVER.OPTIMIZER = "adamw"
    add_fbnetv5_config(cfg)
    assert type(cfg.SEARCH.COST) is OtherNode
    assert (cfg.MODEL_EMA.DECAY, cfg.SOLVER.OPTIMIZER) == (0.5, "adamw")


def test_a_dumped_config_loads_again(tmp_path):
    file = tmp_path / "config.yaml"
    cfg = load_cfg("search_digits.yaml")
    file.write_text(cfg.dump())
    assert load_cfg(file).dump() == cfg.dump()
    assert yaml.safe_load(file.read_text())["SEARCH"]["TASKS"] == ["cls", "det", "seg"]


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("SOLVER.MAX_ITER", "0", "1 or more"),
        ("SOLVER.BASE_LR", "-1.0", "more than 0"),
        ("SOLVER.STEPS", "(5, 3)", "rising"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "WarmupCosineLR"),
        ("SOLVER.OPTIMIZER", "lion", "sgd, adamw"),
        ("SOLVER.IMS_PER_BATCH", "33", "multiples of the 2 processes"),
        ("INPUT.FORMAT", "BGR", "RGB"),
        ("INPUT.CROP.SIZE", "[0.5, 0.5]", "whole pixels"),
        ("MODEL.DEVICE", "tpu", "cpu, cuda"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MultitaskSearch"),
        ("MODEL.FBNETV5.FAMILY", "Z", "A_C"),
        ("MODEL.DDP_FIND_UNUSED_PARAMETERS", "False", "True"),
        ("MODEL_EMA.DECAY", "1.5", "at most 1"),
        ("DATASETS.TRAIN", "()", "one or more"),
        ("DATASETS.TEST", "('a', 'b')", "one data set"),
        ("SEARCH.TASKS", "['cls', 'pose']", "cls"),
        ("SEARCH.SAMPLES_PER_RANK", "17", "at most 16"),
        ("SEARCH.INIT_PROB", "0.0", "0.02 or more"),
        ("SEARCH.ALGORITHM", "greedy", "multitask, single_task, per_task_forward, shared_forward, random"),
        ("SEARCH.ESTIMATOR", "straight_through", "with SEARCH.ALGORITHM multitask: reinforce, ''"),
        ("SEARCH.COST.METRIC", "joules", "latency"),
        ("SEARCH.COST.TABLE", "table.csv", "nothing"),
        ("SEARCH.COST.SIZE", "[32]", "height and width"),
        ("SEARCH.COST.TARGET", "2.0", "at most 1"),
        ("SEARCH.EVAL.BN_ITERS", "0", "1 or more"),
        ("SEARCH.HEADS.pose.width", "3", "SEARCH.TASKS"),
        ("FBNETV5_DATA.COLOR_JITTER", "-0.1", "0 or more"),
        ("FBNETV5_DATA.CROP_SIZE_TEST", "1000", "at most 96"),
    ],
)
def test_an_impossible_value_names_key_value_and_what_is_allowed(tmp_path, key, value, allowed):
    cfg = load_cfg("search_digits.yaml", ["OUTPUT_DIR", str(tmp_path / "run"), key, value])
    with pytest.raises(ValueError, match="allowed") as error:
        prepare(cfg, world_size=2)
    message = str(error.value)
    assert key.split(".")[-2 if "HEADS" in key else -1] in message or "HEADS" in message
    assert allowed in message
    assert not (tmp_path / "run").exists()


def test_latency_as_a_cost_comes_from_a_table(tmp_path):
    path = tmp_path / "table.csv"
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SEARCH.COST.METRIC", "latency"]
    with pytest.raises(
        ValueError, match="SEARCH.COST.TABLE is '', allowed .* latency: a file that .*latency_table"
    ):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)
    opts += ["SEARCH.COST.TABLE", str(path)]
    with pytest.raises(FileNotFoundError, match="SEARCH.COST.TABLE: .*table.csv does not exist"):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)
    latency = BlockCosts("latency", (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 10.0))
    write_latency_table(path, latency, build_family("N"), (64, 64))
    with pytest.raises(ValueError, match="SEARCH.COST.TABLE: .*line 2: the table is of size 64x64"):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)

    write_latency_table(path, latency, build_family("N"), (96, 96))
    cfg = load_cfg("search_digits.yaml", opts)
    prepare(cfg, world_size=1)
    info = DatasetInfo(class_names=("a", "b"), box_names=("a",), sem_seg_names=("a", "b"))
    cost = search_arguments(cfg, info, seed=0)["cost"]
    assert cost.costs.tolist() == [[1.0, 2.0, 3.0, 10.0]] * 4


def test_a_crop_too_small_for_the_family(tmp_path):
    opts = [
        "OUTPUT_DIR",
        str(tmp_path),
        "MODEL.FBNETV5.FAMILY",
        "A",
        "SEARCH.COST.SIZE",
        "[]",
        "INPUT.CROP.SIZE",
    ]
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.SIZE is \[32, 32\], allowed for family A: 49"):
        prepare(load_cfg("search_digits.yaml", [*opts, "[32, 32]"]), world_size=1)
    prepare(load_cfg("search_digits.yaml", [*opts, "[40, 40]"]), world_size=1)


def test_a_recipe_for_16_processes_scales_to_4(tmp_path):
    cfg = load_cfg("search.yaml")
    scale_to_world_size(cfg, 4)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (192, 37500, (12500,))
    assert pytest.approx(0.24) == solver.BASE_LR
    assert cfg.SEARCH.ARCH_WARMUP_ITERS == 25000
    again = cfg.clone()
    scale_to_world_size(again, 4)
    assert again == cfg


def test_reference_world_size_0_leaves_a_recipe_as_it_is():
    cfg = load_cfg("search_digits.yaml")
    scaled = cfg.clone()
    scale_to_world_size(scaled, 2)
    assert scaled == cfg


def test_the_default_config_is_detectron2s_where_it_has_the_key():
    cfg = get_cfg()
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == ("cuda", 16, 40000)


@pytest.mark.parametrize(
    ("algorithm", "tasks", "estimator", "message"),
    [
        (
            "single_task",
            "['cls', 'det']",
            "",
            r"SEARCH.TASKS is \['cls', 'det'\], allowed .* single_task: one task",
        ),
        (
            "single_task",
            "['cls']",
            "gumbel",
            "'gumbel', allowed .* single_task: straight_through, reinforce, ''",
        ),
        (
            "shared_forward",
            "['cls']",
            "reinforce",
            "'reinforce', allowed .* shared_forward: straight_through, ''",
        ),
        ("random", "['cls']", "reinforce", "'reinforce', allowed .* random: ''"),
    ],
)
def test_search_algorithms_know_their_tasks_and_estimators(tmp_path, algorithm, tasks, estimator, message):
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SEARCH.ALGORITHM", algorithm]
    cfg = load_cfg("search_digits.yaml", [*opts, "SEARCH.TASKS", tasks, "SEARCH.ESTIMATOR", estimator])
    with pytest.raises(ValueError, match=message):
        prepare(cfg, world_size=1)


def test_each_search_algorithm_gets_its_own_arguments(tmp_path):
    info = DatasetInfo(class_names=("a", "b"))
    own = {
        "multitask": {"importance_weighted", "self_normalize"},
        "single_task": {"estimator"},
        "per_task_forward": {"estimator"},
        "shared_forward": {"self_normalize"},
        "random": set(),
    }
    for algorithm, expected in own.items():
        opts = ["OUTPUT_DIR", str(tmp_path), "SEARCH.ALGORITHM", algorithm, "SEARCH.TASKS", "['cls']"]
        cfg = prepare(load_cfg("search_digits.yaml", opts), world_size=1)
        arguments = search_arguments(cfg, info, 0)
        assert {"importance_weighted", "self_normalize", "estimator"} & set(arguments) == expected
        search = search_class(algorithm)(**arguments)
        assert getattr(search, "estimator", "straight_through") == "straight_through"
