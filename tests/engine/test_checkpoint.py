import logging

import pytest
import torch
from torch import nn

from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.engine.history import History, read_history, write_evaluation
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


def test_weights_alone_come_from_a_checkpoint_or_a_state_dict(tmp_path):
    save(tmp_path, 5)
    bare = tmp_path / "bare.pth"
    torch.save({"weight": torch.full((1, 2), 9.0), "bias": torch.zeros(1)}, bare)
    for path, value in ((tmp_path / "model_0000005.pth", 5.0), (bare, 9.0)):
        model, checkpointer = make(tmp_path)
        checkpointer.load_weights(str(path))
        assert model.weight[0, 0].item() == value


def test_weights_that_cannot_be_used_name_the_key(tmp_path):
    checkpointer = make(tmp_path)[1]
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS.*nowhere"):
        checkpointer.load_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS.*not a checkpoint"):
        checkpointer.load_weights(str(tmp_path / "noise.pth"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no weight of .* fits"):
        checkpointer.load_weights(str(tmp_path / "other.pth"))


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
