import re
from pathlib import Path

import torch
import yaml

from d2go_fbnetv5.engine.config import load_cfg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_python_examples_run(capsys):
    namespace = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("Topology(")

    scenes, search = namespace["scenes"], namespace["search"].eval()
    task = namespace["Counting"](search.supernet.channels, scenes.info)
    batch = [scenes[i] for i in range(2)]
    features = search.supernet(namespace["normalize"](batch), search.most_likely()["cls"])
    assert task(features, batch)["loss_count"].isfinite()
    evaluator = task.evaluator(scenes.info)
    evaluator.reset()
    with torch.no_grad():
        evaluator.process(batch, task.eval()(features, batch))
    assert evaluator.evaluate()["error"] >= 0
    assert task(features, [{}])[0]["count"].ndim == 0


def test_yaml_example_is_a_configuration(tmp_path):
    (block,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(block.replace("search.yaml", str(ROOT / "configs" / "search.yaml")))
    cfg = load_cfg(str(tmp_path / "mine.yaml"), [])
    assert list(cfg.DATASETS.TRAIN) == ["mine_train"]
    assert (
        cfg.FBNETV5_DATA.DATASETS.mine_val.index
        == yaml.safe_load(block)["FBNETV5_DATA"]["DATASETS"]["mine_val"]["index"]
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
