import re

import pytest
import torch
import yaml
from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs, build_family
from d2go_fbnetv5.arch.latency_table import write_latency_table
from d2go_fbnetv5.engine.build import build_search_groups
from d2go_fbnetv5.engine.config import as_dict, find_config, get_cfg, load_cfg
from d2go_fbnetv5.engine.keys import CLASSIFIER, KEYS, MODEL, SEARCH
from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.engine.recipes.search import search_arguments
from d2go_fbnetv5.engine.train import prepare
from d2go_fbnetv5.engine.validate import check_device, check_read, scale_to_world_size
from d2go_fbnetv5.search import ALGORITHMS
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import add_keys, get


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
        ("SOLVER.MAX_ITER: 5", "SOLVER.MAX_ITER has a dot, as on the command line; in a file"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER is 'many', allowed: a whole number, such as 40000"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER is '1.5', allowed: a whole number"),
        ("SOLVER: {MAX_ITER: True}", "SOLVER.MAX_ITER is 'True', allowed: a whole number"),
        ("SOLVER: 3", "SOLVER is a group of keys, found the value '3'"),
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


@pytest.mark.parametrize(
    "text", ["2024_01_15", "1.10", "08", "1e5", "0x1F", "12:30", "2024-01-15", "yes", "~x"]
)
def test_a_key_that_is_a_text_gets_the_very_characters(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(f"MODEL: {{META_ARCHITECTURE: {text}}}\nDATASETS: {{TRAIN: [{text}, '{text}']}}\n")
    for cfg in (
        load_cfg(file),
        load_cfg(None, ["MODEL.META_ARCHITECTURE", text, "DATASETS.TRAIN", f"[{text}, '{text}']"]),
    ):
        assert text == cfg.MODEL.META_ARCHITECTURE
        assert (text, text) == cfg.DATASETS.TRAIN
        saved = tmp_path / "saved.yaml"
        saved.write_text(cfg.dump())
        assert text == load_cfg(saved).MODEL.META_ARCHITECTURE


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("CUDNN_BENCHMARK", "yes", True),
        ("MODEL_EMA.ENABLED", "off", False),
        ("SOLVER.NESTEROV", "TRUE", True),
        ("SOLVER.MAX_ITER", "'12'", 12),
        ("SOLVER.MAX_ITER", "10_000", 10000),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.BASE_LR", "08", 8.0),
        ("SOLVER.BASE_LR", "'.5'", 0.5),
        ("SOLVER.STEPS", "(3, 5)", (3, 5)),
        ("SOLVER.STEPS", "'[3, 5]'", (3, 5)),
        ("SOLVER.STEPS", "7", (7,)),
        ("SOLVER.STEPS", "[]", ()),
        ("SEARCH.TASKS", "[cls, 'det']", ["cls", "det"]),
        ("SEARCH.TASKS", "('cls', 'det')", ["cls", "det"]),
        ("SEARCH.COST.SIZE", "[96, 1_28]", [96, 128]),
        ("FBNETV5_DATA.CROP_AREA", "[1e-1, 1]", [0.1, 1]),
        ("SOLVER.LR_MULTIPLIER_OVERWRITE", "[{backbone: 1e-1}]", [{"backbone": 0.1}]),
        ("MODEL.WEIGHTS", "''", ""),
        ("MODEL.WEIGHTS", "'null'", "null"),
    ],
)
def test_a_file_and_a_command_line_mean_the_same(tmp_path, key, value, expected):
    file = tmp_path / "c.yaml"
    file.write_text(yaml_line(key, value))
    for cfg in (load_cfg(file), load_cfg(None, [key, value])):
        assert get(cfg, key) == expected and type(get(cfg, key)) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("CUDNN_BENCHMARK", "1", "True or False"),
        ("CUDNN_BENCHMARK", "nope", "True or False"),
        ("SOLVER.MAX_ITER", "08", "a whole number"),
        ("SOLVER.MAX_ITER", "1e5", "a whole number"),
        ("SOLVER.MAX_ITER", "1:30", "a whole number"),
        ("SOLVER.MAX_ITER", "2024-01-15", "a whole number"),
        ("SOLVER.MAX_ITER", "[3]", "a whole number"),
        ("SOLVER.MAX_ITER", "9223372036854775808", "at most 19 digits"),
        ("SOLVER.MAX_ITER", "9" * 5000, "a whole number"),
        ("SOLVER.BASE_LR", ".inf", "a finite number"),
        ("SOLVER.BASE_LR", "nan", "a finite number"),
        ("SOLVER.BASE_LR", "1e999", "a finite number"),
        ("SOLVER.BASE_LR", "yes", "a finite number"),
        ("SOLVER.BASE_LR", "-" * 100000, "a finite number"),
        ("DATASETS.TRAIN", "mine", "a list"),
        ("SEARCH.TASKS", "cls", "a list"),
        ("SEARCH.TASKS", "[cls, [det]]", "a text"),
    ],
)
def test_what_a_key_cannot_mean_is_refused_by_its_name(tmp_path, key, value, allowed):
    file = tmp_path / "c.yaml"
    file.write_text(yaml_line(key, value))
    for load in (lambda: load_cfg(file), lambda: load_cfg(None, [key, value])):
        with pytest.raises(InputError, match=f"{key} is .*, allowed: .*{allowed}") as error:
            load()
        assert len(str(error.value)) < 500


def yaml_line(key, value):
    *groups, last = key.split(".")
    return (
        "".join(f"{'  ' * i}{group}:\n" for i, group in enumerate(groups))
        + "  " * len(groups)
        + (f"{last}: {value}\n")
    )


def test_null_is_no_text_and_an_empty_value_is_none(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("OUTPUT_DIR: null\n")
    with pytest.raises(InputError, match="OUTPUT_DIR is 'null', allowed: a text"):
        load_cfg(file)
    file.write_text("MODEL: {WEIGHTS: }\n")
    assert load_cfg(file).MODEL.WEIGHTS == ""


def test_options_keep_what_was_written_until_it_is_known_what_they_are(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "FBNETV5_DATA: {DATASETS: {mine: {root: 1.10, name: 2024_01, size: 104, on: yes, none: null,"
        " rate: 0.25, small: 1e-4, names: [1, '2', x], 7: 8}}}"
    )
    options = as_dict(load_cfg(file).FBNETV5_DATA.DATASETS)["mine"]
    assert options == {
        "root": "1.10",
        "name": "2024_01",
        "size": 104,
        "on": True,
        "none": None,
        "rate": 0.25,
        "small": "1e-4",
        "names": [1, "2", "x"],
        "7": 8,
    }
    saved = tmp_path / "saved.yaml"
    saved.write_text(load_cfg(file).dump())
    assert as_dict(load_cfg(saved).FBNETV5_DATA.DATASETS)["mine"] == options


def test_an_option_may_change_its_kind_on_the_way_from_a_base_to_the_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("SEARCH: {HEADS: {det: {sizes: 8, more: {a: 1}}}}")
    file = tmp_path / "c.yaml"
    file.write_text("_BASE_: base.yaml\nSEARCH: {HEADS: {det: {more: {b: 2}}}}")
    det = load_cfg(file, ["SEARCH.HEADS.det.sizes", "[8, 16]"]).SEARCH.HEADS.det
    assert as_dict(det) == {"sizes": [8, 16], "more": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("SOLVER: {MAX_ITER: 7}\nSOLVER: {BASE_LR: 1.0}\n", "the key SOLVER stands twice, in lines 1 and 2"),
        ("SOLVER:\n  MAX_ITER: 7\n  GAMMA: 1\n  MAX_ITER: 7\n", "key SOLVER.MAX_ITER .* lines 2 and 4"),
        ("SEARCH: {HEADS: {det: {a: 1, 'a': 2}}}", "key SEARCH.HEADS.det.a stands twice"),
        ("SOLVER: {LR_MULTIPLIER_OVERWRITE: [{a: 1, a: 2}]}", "LR_MULTIPLIER_OVERWRITE.a stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path, text, lines):
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\n")
    for name in ("base.yaml", "c.yaml"):
        with pytest.raises(InputError, match=rf"base\.yaml: .*{lines}"):
            load_cfg(tmp_path / name)


def test_anchors_and_merges_of_yaml_are_read(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "SEARCH: {HEADS: {det: &head {feature: path1, input_norm: True}, seg: {<<: *head, feature: path0}}}\n"
        "FBNETV5_DATA: {DATASETS: {a: *head, b: *head}}\n"
    )
    cfg = load_cfg(file)
    assert as_dict(cfg.SEARCH.HEADS.seg) == {"feature": "path0", "input_norm": True}
    assert cfg.FBNETV5_DATA.DATASETS.b == cfg.SEARCH.HEADS.det


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEARCH: {HEADS: {a: &a [*a]}}", "nested too deeply"),
        ("SEARCH: {HEADS: {a: " + "[" * 5000 + "]" * 5000 + "}}", "nested too deeply"),
        ("SEARCH: {HEADS: " + "{a: " * 5000 + "1" + "}" * 5001, "nested too deeply"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
            ),
            "more than 200000 values",
        ),
        ("? [a, b]\n: 1\n", "a list or mapping is a key"),
        ('OUTPUT_DIR: "\\ud800"', "line 1: .*half a character"),
        ("OUTPUT_DIR: !!binary aGk=", "the tag .*binary is not read"),
        ("a: 1\n---\nb: 2\n", "not plain YAML"),
        ("\0", "not plain YAML"),
    ],
)
def test_yaml_that_is_made_to_break_readers_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_cfg(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfeO\0U\0", b"OUTPUT_DIR: caf\xe9\n"])
def test_a_configuration_that_is_no_utf8_is_one_sentence(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.yaml: not a text file"):
        load_cfg(file)


@pytest.mark.parametrize("opts", [["OUTPUT_DIR", "\udcff"], ["\udcff", "1"], ["OUTPUT_DIR", "\ud800"]])
def test_a_command_line_that_is_no_utf8_is_one_sentence(opts):
    with pytest.raises(InputError, match="is no UTF-8"):
        load_cfg(None, opts)


def test_a_base_is_a_shipped_configuration_unless_there_is_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    for name in ("search.yaml", "configs/search.yaml", "det/det_digits.yaml", "configs/det/det_digits.yaml"):
        file.write_text(f"_BASE_: {name}\nSOLVER: {{MAX_ITER: 3}}\n")
        cfg = load_cfg(file)
        assert ("MultitaskSearch" if "search" in name else "LiteRCNN") == cfg.MODEL.META_ARCHITECTURE
        assert cfg.SOLVER.MAX_ITER == 3
    (tmp_path / "search.yaml").write_text("SEED: 5\n")
    file.write_text("_BASE_: search.yaml\n")
    assert load_cfg(file).SEED == 5 and load_cfg(file).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("c.yaml", r"_BASE_ goes in a circle: .*c\.yaml -> .*c\.yaml$"),
        ("./c.yaml", "_BASE_ goes in a circle"),
        ("d.yaml", r"in a circle: .*c\.yaml -> .*d\.yaml -> .*c\.yaml$"),
        ("[a.yaml, b.yaml]", r"_BASE_ is \['a.yaml', 'b.yaml'\], allowed: the name of one YAML file"),
        ("{a: 1}", "_BASE_ is .*allowed: the name"),
        ("", "_BASE_ is None, allowed"),
        (".", "which is a folder"),
        ("/tmp", "/tmp, which is a folder"),
        ("3", "names 3, which is neither a file beside it nor a shipped configuration"),
        ("http://x/y.yaml", "names http://x/y.yaml, which is neither"),
    ],
)
def test_a_wrong_base_is_one_sentence(tmp_path, base, message):
    (tmp_path / "c.yaml").write_text(f"_BASE_: {base}\n")
    (tmp_path / "d.yaml").write_text("_BASE_: c.yaml\n")
    with pytest.raises((InputError, FileNotFoundError), match=message) as error:
        load_cfg(tmp_path / "c.yaml")
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value)


def test_home_is_expanded_in_every_key_that_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [key for key, row in KEYS.items() if row.rule.path]
    cfg = load_cfg(None, [part for key in paths for part in (key, "~/x")])
    assert len(paths) == 6 and {get(cfg, key) for key in paths} == {f"{tmp_path}/x"}
    assert str(tmp_path) == load_cfg(None, ["OUTPUT_DIR", "~"]).OUTPUT_DIR
    assert load_cfg(None, ["OUTPUT_DIR", "~root"]).OUTPUT_DIR == "/root"
    with pytest.raises(InputError, match="OUTPUT_DIR is ~nobody.*: there is no user 'nobody-at-all'"):
        load_cfg(None, ["OUTPUT_DIR", "~nobody-at-all/x"])


@pytest.mark.parametrize("path", ["$HOME/x", "/scratch/${USER}/x", "${oc.env:HOME}"])
def test_a_variable_that_no_shell_has_replaced_is_no_folder(tmp_path, monkeypatch, path):
    file = tmp_path / "c.yaml"
    file.write_text(f"OUTPUT_DIR: {path}\n")
    with pytest.raises(InputError, match=f"OUTPUT_DIR is {re.escape(path)}: its variable is not replaced"):
        load_cfg(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$RECYCLE" / "x").mkdir(parents=True)
    for meant in ("$RECYCLE/x", "100$", "a$1"):
        assert meant == load_cfg(None, ["OUTPUT_DIR", meant]).OUTPUT_DIR


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


def test_configurations_are_found_by_name_and_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("search.yaml", "search_digits.yaml", "configs/search.yaml"):
        assert find_config(name).is_file()
        assert load_cfg(name).MODEL.META_ARCHITECTURE == "MultitaskSearch"


def test_search_yaml_is_the_papers_configuration():
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

    cfg = OtherNode({"MODEL_EMA": {"ENABLED": False, "DECAY": 0.5}, "SOLVER": {"OPTIMIZER": "adamw"}})
    add_keys(cfg, KEYS.values())
    assert type(cfg.SEARCH.COST) is OtherNode
    assert (cfg.MODEL_EMA.DECAY, cfg.MODEL_EMA.INCLUDE_BUFFER, cfg.SOLVER.OPTIMIZER) == (0.5, True, "adamw")


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
        ("SOLVER.MAX_ITER", "1000000000", "at most 100000000"),
        ("SOLVER.NUM_DECAYS", "1000000000", "at most 1000000"),
        ("MODEL.PIXEL_MEAN", "[0, 0, 256]", "three numbers of 0 to 255"),
        ("MODEL.PIXEL_STD", "[1, 0, 1]", "three numbers above 0"),
        ("SEARCH.PROB_MIN", "0.5", "below 0.5"),
        ("SOLVER.BASE_LR", "-1.0", "more than 0"),
        ("SOLVER.STEPS", "(5, 3)", "rising"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "WarmupCosineLR"),
        ("SOLVER.OPTIMIZER", "lion", "sgd, adamw"),
        ("SOLVER.OPTIMIZER", "adamw", "sgd, whose steps SEARCH.ARCH_LR_FACTOR"),
        ("SOLVER.IMS_PER_BATCH", "33", "multiples of the 2 processes"),
        ("SOLVER.IMS_PER_BATCH", "1000000000000000000", "at most 131072"),
        ("SOLVER.BETAS", "[0.9]", "two numbers"),
        ("SOLVER.EPS", "0", "more than 0"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "0", "more than 0"),
        ("SEARCH.LOSS_WINDOW", "1000000000", "at most 100000"),
        ("MODEL.FBNETV5.NUM_STAGES", "1000000", "at most 100"),
        ("MODEL.FBNETV5.TOPOLOGY", "a.json", "leave it out"),
        ("MODEL.FBNETV5.HEAD.dropout", "0.1", "HEAD is .*leave it out"),
        ("MODEL.FBNETV5.DISTILLATION.TEACHER", "a", "leave it out"),
        ("TEST.PRECISE_BN.ENABLED", "True", "leave it out"),
        ("MODEL.WEIGHTS", "http://x/y.pth", "download"),
        ("INPUT.MIN_SIZE_TRAIN", "[50000]", "1 to 16384 pixels"),
        ("SEARCH.COST.SIZE", "[1000000, 1000000]", "to 16384"),
        ("SEARCH.COST.SIZE", "[96, 96.5]", "to 16384"),
        ("INPUT.FORMAT", "BGR", "RGB"),
        ("INPUT.CROP.SIZE", "[0.5, 0.5]", "whole pixels"),
        ("MODEL.DEVICE", "tpu", "cpu, cuda"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MultitaskSearch"),
        ("MODEL.FBNETV5.FAMILY", "Z", "A_C"),
        ("MODEL.DDP_FIND_UNUSED_PARAMETERS", "False", "True"),
        ("MODEL_EMA.DECAY", "1.5", "below 1"),
        ("DATASETS.TRAIN", "()", "one or more"),
        ("DATASETS.TEST", "('a', 'b')", "one data set"),
        ("SEARCH.TASKS", "['cls', 'pose']", "cls"),
        ("SEARCH.SAMPLES_PER_RANK", "17", "at most 16"),
        ("SEARCH.INIT_PROB", "0.0", "0.02 or more"),
        ("SEARCH.ALGORITHM", "greedy", "multitask, per_task_forward, random, shared_forward, single_task"),
        ("SEARCH.WARMUP_DENSITIES", "True", "allowed with SEARCH.ARCH_WARMUP_ITERS 0: False"),
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
    with pytest.raises(InputError, match="allowed|leave it out") as error:
        prepare(cfg, world_size=2)
    message = str(error.value)
    assert key.split(".")[-1] in message or "HEAD" in message
    assert re.search(allowed, message)
    assert not (tmp_path / "run").exists()


def test_nesterov_needs_momentum(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.NESTEROV", "on", "SOLVER.MOMENTUM", "0"]
    with pytest.raises(InputError, match="SOLVER.NESTEROV is True, allowed with SOLVER.MOMENTUM 0: False"):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)


def test_a_model_does_not_read_what_is_set_for_a_search(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.FBNETV5.TOPOLOGY", "", "MODEL.WEIGHTS", ""]
    prepare(load_cfg("cls/cls_digits.yaml", opts), world_size=1)
    message = (
        "SEARCH.COST.WEIGHT is set, to 2.0, but nothing of MODEL.META_ARCHITECTURE ImageClassifier reads it"
    )
    with pytest.raises(InputError, match=message):
        prepare(load_cfg("cls/cls_digits.yaml", [*opts, "SEARCH.COST.WEIGHT", "2"]), world_size=1)


def test_what_a_run_had_set_and_never_read_may_stay_where_it_goes_on(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.FBNETV5.TOPOLOGY", "", "MODEL.WEIGHTS", ""]
    opts += ["MODEL.FBNETV5.NUM_STAGES", "4"]
    cfg = load_cfg("cls/cls_digits.yaml", opts)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "model_0000001.pth").touch()
    prepare(cfg, 1, resume=True)
    cfg.MODEL.FBNETV5.NUM_STAGES = 5
    with pytest.raises(
        InputError, match="NUM_STAGES is set, to 5, but nothing of .* ImageClassifier reads it"
    ):
        prepare(cfg, 1, resume=True)


@pytest.mark.parametrize(
    "configuration", [f"{t}/{t}_digits.yaml" for t in ("cls", "det", "seg")] + ["search_digits.yaml"]
)
def test_each_kind_of_run_refuses_what_only_others_read(tmp_path, configuration):
    kinds = {
        "MultitaskSearch": SEARCH,
        "ImageClassifier": MODEL + CLASSIFIER,
        "LiteRCNN": MODEL,
        "LiteMaskFormer": MODEL,
    }
    cfg = load_cfg(configuration)
    readers = get_recipe(cfg.MODEL.META_ARCHITECTURE).readers
    assert readers == kinds[cfg.MODEL.META_ARCHITECTURE]
    check_read(cfg, readers)
    changes = {bool: lambda old: not old, str: lambda old: f"{old}x", dict: lambda old: CfgNode({"x": 1})}
    changes |= {int: lambda old: old + 1, float: lambda old: old + 0.1, list: lambda old: [*old, 1]}
    for key, row in KEYS.items():
        if row.readers:
            changed = cfg.clone()
            group, _, last = key.rpartition(".")
            get(changed, group)[last] = changes[type(row.default)](row.default)
            check_read(changed, None)
            if set(row.readers) & set(readers):
                check_read(changed, readers)
            else:
                with pytest.raises(InputError, match=f"^{key} is set, to .*leave it out$"):
                    check_read(changed, readers)


def test_a_crop_that_loses_labels_is_refused_where_a_search_has_tasks_that_need_them(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "FBNETV5_DATA.CROP_AREA", "[0.1, 1.0]"]
    with pytest.raises(
        InputError, match=r"CROP_AREA is \[0.1, 1.0\], allowed with det in SEARCH.TASKS: \[\]"
    ):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)
    prepare(load_cfg("search_digits.yaml", [*opts, "SEARCH.TASKS", "[cls]"]), world_size=1)


def test_a_searchs_weights_have_the_rates_and_decays_of_the_configuration():
    embedding = torch.nn.Embedding(2, 3)
    search = torch.nn.ModuleDict({"supernet": torch.nn.Linear(2, 2), "head": embedding})
    search.distribution = torch.nn.Module()
    search.distribution.probs = torch.nn.Parameter(torch.zeros(3))
    opts = ["SOLVER.LR_MULTIPLIER_OVERWRITE", "[{supernet: 1e-1}]", "SOLVER.WEIGHT_DECAY_EMBED", "0.5"]
    opts += ["SOLVER.BASE_LR", "2", "SOLVER.WEIGHT_DECAY", "0.25", "SEARCH.ARCH_LR_FACTOR", "0.01"]
    groups = {group["name"]: group for group in build_search_groups(load_cfg(None, opts), search)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "weights x 0.1": (0.2, 0.25),
        "embeddings": (2.0, 0.5),
        "arch": (0.02, 0.0),
    }
    assert groups["arch"]["momentum"] == 0 and groups["arch"]["params"] == [search.distribution.probs]
    opts[1] = "[{supernot: 0.1}]"
    with pytest.raises(InputError, match="LR_MULTIPLIER_OVERWRITE has 'supernot', allowed: a part of"):
        build_search_groups(load_cfg(None, opts), search)


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
    with pytest.raises(ValueError, match="SEARCH.COST.TABLE: .*line 3: the table is of size 64x64"):
        prepare(load_cfg("search_digits.yaml", opts), world_size=1)

    write_latency_table(path, latency, build_family("N"), (96, 96))
    cfg = load_cfg("search_digits.yaml", opts)
    prepare(cfg, world_size=1)
    info = DatasetInfo(class_names=("a", "b"), box_names=("a",), sem_seg_names=("a", "b"))
    cost = search_arguments(cfg, info, seed=0)["cost"]
    assert cost.costs.tolist() == [[1.0, 2.0, 3.0, 10.0]] * 4


def targets(*opts):
    cfg = load_cfg("search_digits.yaml", opts)
    prepare(cfg, world_size=1)
    info = DatasetInfo(class_names=("a", "b"), box_names=("a",), sem_seg_names=("a", "b"))
    return search_arguments(cfg, info, seed=0)["cost"].targets.tolist()


def test_a_budget_is_a_target_in_the_unit_of_the_metric(tmp_path):
    """By hand: Stage 0 comes to 4 ms, the 16 blocks to 64; a detector of Path 1 does not see all of the last stage."""
    path = tmp_path / "table.csv"
    latency = BlockCosts("latency", (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 10.0))
    write_latency_table(path, latency, build_family("N"), (96, 96))
    table = (
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "SEARCH.COST.METRIC",
        "latency",
        "SEARCH.COST.TABLE",
        str(path),
    )
    assert targets(*table, "SEARCH.COST.TARGET", "0.25") == [0.25] * 3
    own = (*table, "SEARCH.COST.TASK_TARGETS.seg", "0.125", "SEARCH.COST.BUDGET", "{det: 20.0}")
    assert targets(*own) == [0.5, 0.25, 0.125]  # 16 of 64 are left for blocks
    assert targets(*table, "SEARCH.COST.BUDGET.det", "3e+0") == [
        0.5,
        0.0,
        0.5,
    ]  # no block, and not all of Stage 0
    for most, place in (("1.5", "-1%"), ("54.5", "101%")):
        with pytest.raises(
            InputError,
            match=f"SEARCH.COST.BUDGET.det is {most} ms, allowed is 2, .* to 54, .*; found is {place} of the way",
        ):
            targets(*table, "SEARCH.COST.BUDGET.det", most)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BUDGET", "{pose: 9.0e+6}", "SEARCH.COST.BUDGET has 'pose', allowed as in SEARCH.TASKS: "),
        ("BUDGET.det", "few", "SEARCH.COST.BUDGET.det is 'few', allowed is a number over 0"),
        ("TASK_TARGETS.det", "1.5", "SEARCH.COST.TASK_TARGETS.det is 1.5, allowed: 0 to 1"),
        ("PRICE", "quadratic", "SEARCH.COST.PRICE is 'quadratic', allowed: hinge, absolute"),
    ],
)
def test_what_no_target_can_be_is_named(key, value, message):
    with pytest.raises(InputError, match=message):
        targets(f"SEARCH.COST.{key}", value)


def test_a_budget_and_a_target_of_one_task_contradict_each_other():
    budget = ("SEARCH.COST.BUDGET.det", "9.0e+6")
    with pytest.raises(
        InputError, match="TASK_TARGETS has 'det', allowed with SEARCH.COST.BUDGET.det: nothing"
    ):
        targets(*budget, "SEARCH.COST.TASK_TARGETS.det", "0.5")
    with pytest.raises(InputError, match="SEARCH.COST.WEIGHT is 0, allowed with SEARCH.COST.BUDGET: more"):
        targets(*budget, "SEARCH.COST.WEIGHT", "0")


def test_tasks_of_a_group_have_one_target_for_the_paths_that_all_of_them_read():
    """By hand: heads of Paths 1 and 3 see all blocks but the last stage's of Paths 0 and 2."""
    opts = ["SEARCH.GROUPS", "[[cls, det]]", "SEARCH.COST.TASK_TARGETS.det", "0.25"]
    assert targets(*opts) == [0.25, 0.25, 0.5]
    costs = block_costs("N", (96, 96))
    most = costs.network(Topology.full(4), ("path1", "path3"))
    budget = ["SEARCH.GROUPS", "[[cls, det], [seg]]", "SEARCH.COST.BUDGET.det", repr(most)]
    seen = 1 - (costs.blocks[0] + costs.blocks[2]) / (4 * sum(costs.blocks))
    assert targets(*budget) == pytest.approx([seen, seen, 0.5])
    with pytest.raises(InputError, match=r"^SEARCH.COST.BUDGET.det is .*, allowed is"):
        targets(*budget[2:])
    with pytest.raises(
        InputError, match="^SEARCH.COST has targets or budgets for (cls and det|det and cls), allowed: one"
    ):
        targets(*opts, "SEARCH.COST.TASK_TARGETS.cls", "0.5")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "[[cls, det, cls]]",
            r"SEARCH.GROUPS is \[.*\], with 'cls' twice; allowed: each of SEARCH.TASKS, cls, det, seg",
        ),
        ("[[cls], [det, pose]]", "SEARCH.GROUPS is .*, with 'pose' in it; allowed: each of SEARCH.TASKS"),
        ("[cls, det]", r"SEARCH.GROUPS is \['cls', 'det'\], allowed: a list of lists of tasks' names"),
        ("[[]]", r"SEARCH.GROUPS is \[\[\]\], allowed: a list of lists"),
    ],
)
def test_what_no_groups_of_tasks_can_be_is_named(value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        targets("SEARCH.GROUPS", value)
    with pytest.raises(
        InputError, match=r"^SEARCH.GROUPS is .*, allowed with SEARCH.ALGORITHM shared_forward: \[\]"
    ):
        targets(
            "SEARCH.GROUPS",
            "[[cls, det]]",
            "SEARCH.ALGORITHM",
            "shared_forward",
            "SEARCH.TRAIN_WEIGHTS",
            "True",
        )


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


def test_a_configuration_for_16_processes_scales_to_4(tmp_path):
    cfg = load_cfg("search.yaml")
    scale_to_world_size(cfg, 4)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (192, 37500, (12500,))
    assert pytest.approx(0.24) == solver.BASE_LR
    assert cfg.SEARCH.ARCH_WARMUP_ITERS == 25000
    again = cfg.clone()
    scale_to_world_size(again, 4)
    assert again == cfg


def test_reference_world_size_0_leaves_a_configuration_as_it_is():
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
        search = ALGORITHMS[algorithm](**arguments)
        assert getattr(search, "estimator", "straight_through") == "straight_through"


@pytest.mark.parametrize(
    "device, num_processes, gpus, message",
    [
        ("cuda", 1, 0, "DEVICE is 'cuda', but torch finds no such device here; allowed: cpu"),
        ("cuda:1", 2, 2, "DEVICE is 'cuda:1', allowed for 2 processes: cuda, as each takes a GPU of its own"),
        ("cuda:2", 1, 2, "DEVICE is 'cuda:2', allowed: cuda, cuda:0 to cuda:1, the GPUs here"),
        ("mps", 1, 2, "DEVICE is 'mps', allowed: cpu, cuda"),
        ("gpu", 1, 2, "DEVICE is 'gpu', allowed: cpu, cuda"),
    ],
)
def test_devices_that_cannot_be_used(device, num_processes, gpus, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(InputError) as caught:
        check_device("DEVICE", device, num_processes)
    assert str(caught.value) == message
    for usable in ("cpu", *(("cuda", f"cuda:{gpus - 1}") if gpus else ())):
        check_device("DEVICE", usable)
