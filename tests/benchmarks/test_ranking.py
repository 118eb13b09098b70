"""The ranking's arithmetic by hand, what it draws, and that its command runs to its tables."""

import argparse
import itertools
import json
import math
import sys

import pytest
from scipy.stats import kendalltau

from d2go_fbnetv5 import Topology
from d2go_fbnetv5.arch import block_costs


@pytest.fixture(scope="module")
def ranking(load_benchmark):
    return load_benchmark("ranking")


def every_pair(count):
    return list(itertools.combinations(range(count), 2))


def test_kendalls_tau_by_hand_and_as_scipy_has_it(ranking):
    # Of the six pairs of four networks one is the other way round.
    assert ranking.kendall([1, 2, 3, 4], [1, 2, 4, 3], every_pair(4)) == pytest.approx(4 / 6)
    assert ranking.kendall([1, 2, 3, 4], [4, 3, 2, 1], every_pair(4)) == -1
    assert math.isnan(ranking.kendall([1, 1], [1, 2], every_pair(2)))
    a, b = [3, 1, 2, 2, 5, 4, 4], [2, 1, 3, 3, 6, 6, 4]
    assert ranking.kendall(a, b, every_pair(7)) == pytest.approx(kendalltau(a, b).statistic)


def test_the_jackknifes_error_of_a_mean_is_the_usual_one(ranking):
    values = [2.0, 4.0, 9.0, 1.0]
    mean, error = ranking.jackknife(lambda numbers: sum(values[i] for i in numbers) / len(numbers), 4)
    assert mean == 4
    assert error == pytest.approx((sum((v - 4) ** 2 for v in values) / 3 / 4) ** 0.5)


def test_within_thirds_of_cost_an_order_by_cost_alone_is_worth_nothing_between_them(ranking):
    costs = [1, 2, 3, 11, 12, 13, 21, 22, 23]
    # The dearer third is better, and within a third the cheaper network.
    trained = [3, 2, 1, 6, 5, 4, 9, 8, 7]
    by_cost = ranking.agreement(costs, trained, costs, costs)
    assert by_cost["tau"].startswith("0.50") and by_cost["tau within thirds"] == "-1.00 ± 0.00"
    perfect = ranking.agreement(trained, trained, costs, costs)
    assert perfect["tau"] == perfect["tau within thirds"] == "1.00 ± 0.00"
    assert perfect["lead over cost within thirds"] == "2.00 ± 0.00"


def test_how_far_a_trained_order_repeats_itself_is_said_of_each_pair_of_seeds(ranking):
    costs = [0.0, 1.0, 14.0, 15.0, 28.0, 29.0]
    first, second = [1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]
    row = ranking.repetition([first, second, first], costs)
    assert [part.split()[0] for part in row["tau"].split(", ")] == [f"{9 / 15:.2f}", "1.00", f"{9 / 15:.2f}"]
    assert [part.split()[0] for part in row["tau within thirds"].split(", ")] == ["-1.00", "1.00", "-1.00"]


def test_networks_differ_and_are_spread_over_the_costs(ranking):
    costs, paths = block_costs("N", (96, 96)), ("path1",)
    drawn = ranking.draw_networks(costs, "det", paths, 7, 30)
    assert drawn == ranking.draw_networks(costs, "det", paths, 7, 30)
    assert len({t.prune(paths) for t in drawn}) == 30
    least = costs.network(Topology([[0] * 4] * 7), paths)
    width = (costs.network(Topology.full(7), paths) - least) / 30
    parts = [min(int((costs.network(t, paths) - least) / width), 29) for t in drawn]
    assert parts == list(range(30))


def test_what_was_trained_is_kept_and_not_trained_again(ranking, tmp_path, monkeypatch):
    networks = sys.modules["networks"]
    seen = []

    def finished(config, folder, opts):
        seen.append((config, dict(zip(opts[::2], opts[1::2], strict=True))))
        return {"metrics": {"AP": 0.25 * len(seen)}}

    monkeypatch.setattr(networks, "finished", finished)
    trainer = networks.Trainer(
        networks.SCENES["fashion"], tmp_path, {"8000": tmp_path / "a.pth"}, {"det": 600}, 64, tmp_path
    )
    topology = Topology([[0, 1, 0, 0]] + [[0] * 4] * 6)
    assert trainer("det", topology, "8000", 0) == trainer("det", topology, "8000", 0) == 0.25
    assert trainer("det", topology, "scratch", 0, doublings=1) == 0.5
    assert trainer("det", topology, "8000", 1) == 0.75
    assert [config for config, _ in seen] == ["det/det_fashion_light.yaml"] * 3
    assert [options["SOLVER.MAX_ITER"] for _, options in seen] == [600, 1200, 600]
    assert {options["MODEL.DEVICE"] for _, options in seen} == {"cpu"}
    assert [options["MODEL.WEIGHTS"] for _, options in seen] == [tmp_path / "a.pth", "", tmp_path / "a.pth"]
    kept = json.loads((tmp_path / "trained_det_fashion_light.json").read_text())
    assert sorted(kept.values()) == [0.25, 0.5, 0.75] and all("64 images" in key for key in kept)
    # What was trained otherwise does not count.
    assert trainer.kept("det", "8000", 0) == {topology.prune(["path1"]): 0.25}
    assert trainer.kept("det", "8000", 1) == {topology.prune(["path1"]): 0.75}
    assert trainer.kept("det", "700", 0) == trainer.kept("det", "00", 0) == {}


def test_a_supernet_that_ships_is_not_trained_again(ranking, tmp_path, monkeypatch):
    networks, trained = sys.modules["networks"], []
    monkeypatch.setattr(networks, "finished", lambda config, folder, opts: trained.append(folder.name))
    digits = networks.SCENES["digits"]
    assert networks.pretrained(digits, "8000", tmp_path).name == "supernet_n_digits.safetensors"
    assert networks.pretrained(digits, "8000", tmp_path).is_file() and not trained
    assert networks.pretrained(digits, "700", tmp_path).name == "model_final.pth"
    networks.pretrained(digits, "8000", tmp_path, seed=1)
    networks.pretrained(networks.SCENES["fashion"], "8000", tmp_path)
    assert trained == ["supernet_digits_700_0", "supernet_digits_8000_1", "supernet_fashion_8000_0"]


def test_a_supernet_goes_on_from_one_of_fewer_steps(ranking, tmp_path, monkeypatch):
    networks, options = sys.modules["networks"], {}

    def finished(config, folder, opts):
        options[folder.name] = dict(zip(opts[::2], opts[1::2], strict=True))

    monkeypatch.setattr(networks, "finished", finished)
    last = networks.pretrained(networks.SCENES["fashion"], "700+700+40", tmp_path)
    names = ["supernet_fashion_700_0", "supernet_fashion_700+700_0", "supernet_fashion_700+700+40_0"]
    assert list(options) == names and last == tmp_path / names[2] / "model_final.pth"
    assert [options[name].get("MODEL.WEIGHTS") for name in names] == [
        None,
        tmp_path / names[0] / "model_final.pth",
        tmp_path / names[1] / "model_final.pth",
    ]
    assert [options[name]["SEED"] for name in names] == [0, 1, 2]
    assert [options[name]["SOLVER.WARMUP_ITERS"] for name in names] == [100, 100, 10]
    for wrong in ("8000+", "-1", "0", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="allowed: numbers of steps"):
            networks.supernet_steps(wrong)


def test_judgements_of_a_supernet_that_was_pretrained_anew_are_kept_apart(ranking, tmp_path, monkeypatch):
    networks, judged = sys.modules["networks"], []
    monkeypatch.setattr(networks, "build_run", lambda *_: None)
    monkeypatch.setattr(networks, "judge_all", lambda run, asked, folder, images: judged.append(folder) or {})
    weights = tmp_path / "model_final.pth"
    for content in (b"first", b"second", b"first"):
        weights.write_bytes(content)
        networks.judge_with(networks.SCENES["digits"], weights, "8000", {}, 64, tmp_path, tmp_path)
    assert judged[0] == judged[2] != judged[1]
    assert all(folder.is_dir() and folder.name.startswith("judged_digits_8000_") for folder in judged)


@pytest.mark.slow
def test_the_ranking_runs_to_its_tables(ranking, tmp_path, monkeypatch, capsys):
    output = tmp_path / "ranking.json"
    argv = ["ranking.py", "--quick", "--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", argv)
    ranking.main()
    content = json.loads(output.read_text())
    assert len(content["networks"]["seg"]) == 4
    assert {row["ranked by"] for row in content["Orders of networks, Kendall's tau ± standard error"]} == {
        "supernet of 2 steps",
        "supernet of 2 steps, loss",
        "supernet of 2+2 steps",
        "supernet of 2+2 steps, loss",
        "cost",
    }
    assert "| ranked by |" in capsys.readouterr().out
    assert all(len(network["by seed"]) == 1 for network in content["networks"]["seg"])
    # What it has trained can be ranked without training.
    monkeypatch.setattr(sys.modules["networks"].Trainer, "_train", lambda *_: pytest.fail("trains"))
    for more in (["--trained"], ["--repeats", "0"]):
        monkeypatch.setattr(sys, "argv", [*argv, *more])
        ranking.main()
        again = json.loads(output.read_text())
        assert len(again["networks"]["seg"]) == 4 and "The same networks trained in other ways" not in again
    # Two seeds' are ranked by their mean, and by each other.
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [*argv, "--repeats", "0", "--seeds", "0", "1", "--start", "2"])
    ranking.main()
    again = json.loads(output.read_text())
    for network in again["networks"]["seg"]:
        assert len(network["by seed"]) == 2
        assert network["trained mIoU"] == pytest.approx(sum(network["by seed"]) / 2)
    rows = again["Orders of networks, Kendall's tau ± standard error"]
    assert "trainings of one seed, another's" in [row["ranked by"] for row in rows]
    kept = json.loads((tmp_path / "quick" / "results" / "trained_seg_digits.json").read_text())
    assert sum(" 2 2 steps 16 images seed 1" in key for key in kept) == 4
    monkeypatch.setattr(sys, "argv", [*argv, "--start", "8000"])
    with pytest.raises(ValueError, match=r"--start 8000, allowed is one of --supernets: 2, 2\+2"):
        ranking.main()
    monkeypatch.setattr(sys, "argv", [*argv, "--trained", "--seeds", "0", "7"])
    with pytest.raises(ValueError, match="has 0 networks of seg .* seeds 0, 7"):
        ranking.main()
