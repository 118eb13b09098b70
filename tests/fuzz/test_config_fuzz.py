import json
import math
import random
from pathlib import Path

import pytest
from mutations import mutate, outcome

from d2go_fbnetv5.arch import BlockCosts, Topology, build_family
from d2go_fbnetv5.arch.latency_table import read_latency_table, write_latency_table
from d2go_fbnetv5.arch.topology_file import load_topologies, save_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import prepare

COUNTS = [40, pytest.param(600, marks=pytest.mark.slow)]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", COUNTS)
def test_a_spoilt_configuration_is_one_sentence_or_says_the_same_when_saved(tmp_path, count):
    rng, refused = random.Random(17 + count), 0
    texts = [
        (ROOT / "configs" / name).read_text() for name in ("_base_search_digits.yaml", "_base_digits.yaml")
    ]
    texts = [text.replace("output/", f"{tmp_path}/") for text in texts]
    for number in range(count):
        file = tmp_path / f"{number}.yaml"
        file.write_text(mutate(rng.choice(texts), rng), errors="surrogateescape")
        cfg = outcome(lambda file=file: load_cfg(file))
        if isinstance(cfg, str):
            refused += 1
            assert str(tmp_path) in cfg or "IMPORTS" in cfg or " is " in cfg
            continue
        saved = tmp_path / "saved.yaml"
        saved.write_text(cfg.dump(), encoding="utf-8")
        assert load_cfg(saved).dump() == cfg.dump()
        outcome(lambda cfg=cfg: prepare(cfg, world_size=1))
    assert refused > count / 10


@pytest.mark.parametrize("count", COUNTS)
def test_a_spoilt_topology_file_is_one_sentence_or_a_file_that_can_be_written_again(tmp_path, count):
    rng, path = random.Random(29 + count), tmp_path / "topologies.json"
    entry = {"topology": Topology.named("fpn", 4), "outputs": ["path1"], "metrics": {"AP": 0.5}, "flops": 9.5}
    save_topologies(
        path, "N", 4, (96, 96), {"det": entry, "cls": {**entry, "probabilities": [[0.5] * 4] * 4}}
    )
    text = path.read_text()
    for _ in range(count):
        path.write_text(mutate(text, rng), errors="surrogateescape")
        file = outcome(lambda: load_topologies(path))
        if isinstance(file, str):
            assert str(path) in file
            continue
        entries = {
            name: {"topology": e.topology, "outputs": list(e.outputs), "metrics": e.metrics, "flops": e.flops}
            for name, e in file.tasks.items()
        }
        save_topologies(tmp_path / "again.json", file.family, file.num_stages, file.size, entries)
        assert json.loads((tmp_path / "again.json").read_text())["tasks"].keys() == file.tasks.keys()


@pytest.mark.parametrize("count", COUNTS)
def test_a_spoilt_latency_table_is_one_sentence_or_finite(tmp_path, count):
    rng, path, family = random.Random(31 + count), tmp_path / "table.csv", build_family("N")
    write_latency_table(
        path, BlockCosts("latency", (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)), family, (96, 96)
    )
    text = path.read_text()
    for _ in range(count):
        path.write_text(
            mutate(text, rng).replace(",", rng.choice([",", ",", ";", ",,"])), errors="surrogateescape"
        )
        costs = outcome(lambda: read_latency_table(path, family, (96, 96)))
        if isinstance(costs, str):
            assert str(path) in costs
        else:
            assert all(math.isfinite(value) and value >= 0 for value in (*costs.stage0, *costs.blocks))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,milliseconds\nstage0.path0," + b"1" * 200_000, "line 2: not CSV .field larger"),
        (b"\xff\xfe", "not a text file"),
        (b"name,milliseconds\nstage0.path0,1_0\n", "line 2: stage0.path0 takes '1_0'"),
        (b"name,milliseconds\nstage0.path0,1e308\n", "milliseconds of 0 to 1e"),
        (b"x" * 2_000_000, "at most 1000000"),
    ],
)
def test_odd_tables_are_named(tmp_path, content, message):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_latency_table(path, build_family("N"), (96, 96))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(num_stages=10**6), "num_stages is 1000000, allowed is a count of 1 to 100"),
        (lambda c: c.update(size=[10**400, 96]), "of 1 to 16384 pixels"),
        (lambda c: c["tasks"]["det"].update(flops=10**400), "a number of at least 0"),
        (
            lambda c: c["tasks"]["det"]["topology"].update(mask=[[1, 0, 1]] * 4, num_paths=3),
            "of 4 x 3 blocks, allowed is 4 stages, as num_stages says, of 4 paths",
        ),
        (lambda c: c["tasks"]["det"]["topology"].update(mask=[[1, 0, 1, 0]] * 10**5), "at most 100"),
        (
            lambda c: c["tasks"]["det"].update(metrics={"AP": "high"}),
            "metrics.AP is 'high', allowed is a number or null",
        ),
    ],
)
def test_odd_topologies_are_named(tmp_path, change, message):
    path = tmp_path / "topologies.json"
    entry = {"topology": Topology.named("fpn", 4), "outputs": ["path1"], "metrics": {"AP": 0.5}}
    save_topologies(path, "N", 4, (96, 96), {"det": entry})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        load_topologies(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"tasks": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON that can be read"),
        ('{"a": "\\ud800"}', "half a character"),
    ],
)
def test_json_that_is_made_to_break_readers_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "topologies.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_topologies(path)
