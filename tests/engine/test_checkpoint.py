import logging

import pytest
import torch
from torch import nn

from d2go_fbnetv5.engine.checkpoint import OptimizerState, RunCheckpointer
from d2go_fbnetv5.reports.history import History, read_history, write_evaluation
from d2go_fbnetv5.utils.errors import NonFiniteError


def make(folder, value=0.0, keep=3):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, RunCheckpointer(model, folder, keep, optimizer=optimizer)


def weight_after_resume(folder):
    model, checkpointer = make(folder, value=-1.0)
    return checkpointer.resume(), model.weight[0, 0].item()


def save(folder, *iterations, keep=3, final=False):
    for iteration in iterations:
        make(folder, value=float(iteration), keep=keep)[1].save_iteration(iteration, final=final)


def test_the_newest_is_resumed_and_the_last_few_are_kept(tmp_path):
    save(tmp_path, 1, 3, 5, 7, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000005.pth",
        "model_0000007.pth",
    ]
    assert weight_after_resume(tmp_path) == (7, 7.0)


def test_an_empty_folder_resumes_nothing(tmp_path):
    assert make(tmp_path)[1].resume() is None


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "pickle"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, damage, caplog):
    save(tmp_path, 1, 3)
    newest = tmp_path / "model_0000003.pth"
    whole = newest.read_bytes()
    newest.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"x" * 500}.get(damage, b""))
    if damage == "pickle":
        torch.save({"model": make, "iteration": 3}, newest)  # a function: weights_only refuses it
    with caplog.at_level(logging.WARNING):
        assert weight_after_resume(tmp_path) == (1, 1.0)
    assert "model_0000003.pth cannot be read" in caplog.text


def test_a_file_that_was_being_written_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "model_0000003.pth.tmp").write_bytes(b"half")
    assert weight_after_resume(tmp_path) == (1, 1.0)


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="none of its 1 checkpoints can be read"):
        weight_after_resume(tmp_path)


def test_the_final_one_counts_as_newest_and_stays(tmp_path):
    save(tmp_path, 1, 3)
    save(tmp_path, 4, final=True)
    assert weight_after_resume(tmp_path) == (4, 4.0)
    save(tmp_path, 6, 8, keep=1)  # the run went on
    assert weight_after_resume(tmp_path) == (8, 8.0)
    assert (tmp_path / "model_final.pth").exists()


def test_another_configurations_checkpoint_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    checkpointer = RunCheckpointer(nn.Linear(3, 1), tmp_path)
    with pytest.raises(ValueError, match=r"model_0000001\.pth was written with another configuration"):
        checkpointer.resume()


def test_a_weight_that_is_not_finite_is_never_written(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(NonFiniteError, match="iteration 3: the weight weight is not finite"):
        make(tmp_path, value=float("nan"))[1].save_iteration(3)
    assert weight_after_resume(tmp_path) == (1, 1.0)


def test_a_flipped_bit_anywhere_in_the_weights_falls_back(tmp_path, caplog):
    save(tmp_path, 1, 3)
    newest = tmp_path / "model_0000003.pth"
    whole = newest.read_bytes()
    place = whole.index(torch.full((1, 2), 3.0).numpy().tobytes())
    newest.write_bytes(whole[: place + 1] + bytes([whole[place + 1] ^ 4]) + whole[place + 2 :])
    assert weight_after_resume(tmp_path) == (1, 1.0)
    assert "the checksum of its part archive/data/" in caplog.text


def test_a_stored_weight_that_is_not_finite_falls_back(tmp_path, caplog):
    save(tmp_path, 1, 3)
    state = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    state["model"]["bias"].fill_(float("inf"))
    torch.save(state, tmp_path / "model_0000003.pth")
    assert weight_after_resume(tmp_path) == (1, 1.0)
    assert "the weight bias is not finite" in caplog.text


@pytest.mark.parametrize("part", ["iteration", "optimizer", "model"])
@pytest.mark.parametrize("value", [None, [1], "text"])
def test_a_checkpoint_with_something_else_in_a_parts_place_falls_back(tmp_path, part, value):
    save(tmp_path, 1, 3)
    state = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    torch.save(state | {part: value}, tmp_path / "model_0000003.pth")
    assert weight_after_resume(tmp_path) == (1, 1.0)


@pytest.mark.parametrize("iteration", [-1, 10**8, 10**9])
def test_a_checkpoint_of_an_iteration_that_no_run_has_falls_back(tmp_path, caplog, iteration):
    save(tmp_path, 1, 3)
    state = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    torch.save(state | {"iteration": iteration}, tmp_path / "model_0000003.pth")
    assert weight_after_resume(tmp_path) == (1, 1.0)
    assert f"its iteration is {iteration}, allowed: 0 to 99999999" in caplog.text


def test_equal_states_give_equal_bytes_wherever_they_are_written(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        save(tmp_path / name, 3)
    one, other = ((tmp_path / name / "model_0000003.pth").read_bytes() for name in ("a", "b"))
    assert one == other


def test_a_resumed_optimizer_has_its_momenta_and_the_configurations_options():
    def optimizer(**options):
        weight = torch.nn.Parameter(torch.ones(2))
        return torch.optim.SGD([{"params": [weight], "name": "weights", **options}], lr=1.0)

    before = optimizer(momentum=0.9, weight_decay=0.1)
    before.param_groups[0]["params"][0].grad = torch.full((2,), 3.0)
    before.step()
    after = optimizer(momentum=0.5, weight_decay=0.2)
    OptimizerState(after).load_state_dict(OptimizerState(before).state_dict())
    (group,) = after.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 0.2, 1.0)
    (momentum,) = (state["momentum_buffer"] for state in after.state.values())
    assert torch.allclose(momentum, torch.full((2,), 3.1))
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="the optimizer is another"):
        OptimizerState(adam).load_state_dict(before.state_dict())


def test_history_drops_what_is_done_again_and_half_lines(tmp_path):
    history = History(tmp_path)
    for iteration in range(4):
        history.write({"iteration": iteration, "loss": float("nan")})
    history.close()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 4, "lo')
    again = History(tmp_path, start_iteration=2)
    again.write({"iteration": 2, "loss": 1.0})
    again.close()
    assert read_history(tmp_path) == [
        {"iteration": 0, "loss": None},
        {"iteration": 1, "loss": None},
        {"iteration": 2, "loss": 1.0},
    ]


def test_an_evaluation_replaces_the_one_before(tmp_path):
    history = History(tmp_path)
    history.write({"iteration": 3, "loss": 1.0})
    history.close()
    for value in (0.1, 0.2):
        write_evaluation(tmp_path, {"iteration": 3, "eval/cls/top1": value})
    assert read_history(tmp_path) == [{"iteration": 3, "loss": 1.0}, {"iteration": 3, "eval/cls/top1": 0.2}]


def test_an_evaluation_under_other_values_stands_beside_the_runs_own(tmp_path):
    own = {"iteration": 3, "eval/top1": 0.5}
    write_evaluation(tmp_path, own)
    other = {"iteration": 3, "changed": {"INPUT.MIN_SIZE_TEST": 64}, "eval_only/top1": 0.4}
    for value in (0.3, 0.4):
        write_evaluation(tmp_path, other | {"eval_only/top1": value})
    assert read_history(tmp_path) == [own, other]


def test_a_history_that_is_no_text_or_counts_by_letters_keeps_its_good_lines(tmp_path):
    (tmp_path / "metrics.json").write_bytes(
        b'{"iteration": 0}\n{"iteration": "a"}\n\xff\xfe\n{"iteration": 1}\n'
    )
    assert read_history(tmp_path) == [{"iteration": 0}, {"iteration": 1}]
