"""Everything that README.md and docs/ show: programs run, configurations load, commands parse, links lead somewhere."""

import ast
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from d2go_fbnetv5.tools import pseudo_label, train_net

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.pseudo_labels.settings import load_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LANGUAGES = {"bash", "python", "py", "yaml", "yml", "json", "text", "cpp", "csv"}


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands():
    """Every command of a ```bash block, as its page and its words."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            variables = {}
            for line in block.replace("\\\n", " ").splitlines():
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                words = shlex.split(line, comments=True)
                if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
                    variables[assigned[1]] = assigned[2]
                elif words:
                    found.append((str(page.relative_to(ROOT)), words))
    return found


COMMANDS = commands()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with our configurations and the ones that the pages write."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    (mine,) = blocks(ROOT / "docs" / "own-data.md", "yaml")
    (tmp_path / "configs" / "mine.yaml").write_text(mine)
    (labels,) = blocks(ROOT / "docs" / "pseudo-labels.md", "yml")
    (tmp_path / "mine.yaml").write_text(labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_says_what_it_is():
    for page in PAGES:
        opened = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(opened) % 2 == 0 and set(opened[1::2]) <= {""}, page
        assert set(opened[::2]) <= LANGUAGES, page


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_a_pages_programs_run(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), namespace)
    check = {
        "docs/models.md": the_detector_finds_boxes,
        "docs/python.md": the_task_counts,
        "docs/pseudo-labels.md": the_teacher_labels,
    }[name]
    check(namespace, capsys.readouterr().out)


def the_detector_finds_boxes(namespace, _):
    assert namespace["boxes"].ndim == 2 and namespace["boxes"].shape[1] == 4


def the_teacher_labels(namespace, _):
    ((labels),) = namespace["build"]("cpu")([torch.full((3, 4, 6), 51, dtype=torch.uint8)])
    assert labels["probabilities"].shape == (2, 4, 6)
    assert labels["probabilities"][1].allclose(torch.tensor(0.2))


def the_task_counts(namespace, printed):
    assert printed.startswith("Topology(")
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


def test_the_configuration_of_your_own_data_loads(checkout):
    cfg = load_cfg("configs/mine.yaml", [])
    assert list(cfg.DATASETS.TRAIN) == ["mine_train"]
    assert cfg.FBNETV5_DATA.DATASETS.mine_val.index == "mine/val.json"


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "yaml")])
def test_whole_configurations_load(name, checkout):
    for block in blocks(ROOT / name, "yaml"):
        (checkout / "configs" / "whole.yaml").write_text(block)
        cfg = load_cfg("configs/whole.yaml", ["MODEL.DEVICE", "cpu"])
        assert all(cfg.FBNETV5_DATA.DATASETS[each] for each in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "yml")])
def test_parts_of_configurations_have_keys_that_are_known(name, checkout):
    for block in blocks(ROOT / name, "yml"):
        if name == "docs/pseudo-labels.md":
            assert load_settings("mine.yaml", ["DEVICE", "cpu"]).OUTPUT_DIR == "datasets/mine"
        else:
            (checkout / "configs" / "part.yaml").write_text(f"_BASE_: search.yaml\n{block}")
            assert load_cfg("configs/part.yaml", []).SEARCH.HEADS.det.feature == "path1"


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_a_command_is_one_that_its_program_takes(page, words, checkout, monkeypatch):
    program, *rest = words
    if program == "make":
        assert re.search(
            rf"^(?:[\w-]+ )*{rest[0]}(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
    elif program == "pip":
        (extras,) = re.findall(r"^(?:d2go_fbnetv5|\.)\[(.*)\]$", rest[-1])
        setup = (ROOT / "setup.py").read_text()
        assert rest[0] == "install" and all(f'"{each}": [' in setup for each in extras.split(","))
    elif program == "python":
        assert rest[0] == "-c" and ast.parse(rest[1])
    elif program in ("d2go.train_net", "d2go.exporter"):
        assert "--disable-post-mortem" in rest and rest[rest.index("--runner") + 1].startswith(
            "d2go_fbnetv5."
        )
        assert Path(rest[rest.index("--config-file") + 1]).is_file()
    elif program == "torchrun":
        assert rest[rest.index("-m") + 1] == "d2go_fbnetv5.tools.train_net"
        train_net_takes(rest[rest.index("-m") + 2 :])
    elif program == "d2go_fbnetv5.train_net":
        train_net_takes(rest)
    elif program == "d2go_fbnetv5.pseudo_label":
        args = pseudo_label.build_parser().parse_intermixed_args(rest)
        assert load_settings(args.config_file, [*args.opts, "DEVICE", "cpu"])
    elif program.startswith("d2go_fbnetv5."):
        tool = importlib.import_module(program.replace("d2go_fbnetv5.", "d2go_fbnetv5.tools."))
        monkeypatch.setattr(tool, "run_tool", lambda *args: 0)  # what comes after the arguments
        assert tool.main(rest) == 0
    else:
        assert words == [".", ".venv/bin/activate"]


def train_net_takes(arguments):
    args = train_net.build_parser().parse_intermixed_args(arguments)
    assert load_cfg(args.config_file, args.opts)


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_on_the_site_and_within_reach():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in NAMES[1:] if f" {name.removeprefix('docs/')}\n" not in site] == []
    linked = PAGES[0].read_text(encoding="utf-8")
    beside = {"docs/index.md", "docs/api.md", "docs/benchmarks.md", "docs/contributing.md"}  # the site's own
    assert [name for name in NAMES[1:] if name not in beside and f"({name})" not in linked] == []


def texts_of_the_source():
    """What messages are made of: all strings of the source, with `...` for what is filled in."""
    found = []
    for path in (ROOT / "d2go_fbnetv5").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("%s", "...").replace("%d", "..."))
    return found


def test_the_messages_of_troubleshooting_are_ones_that_the_source_has():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## D2Go")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 20
    source = texts_of_the_source()
    for message in messages:
        parts = [re.escape(part) for part in message.split("...") if part.strip()]
        assert any(re.search(".*".join(parts), text) for text in source), message
