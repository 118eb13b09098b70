"""A disk that is full at any moment of a run: one sentence, earlier checkpoints intact, and it goes on with space."""

import os
import re
import subprocess

import pytest
import torch

from d2go_fbnetv5.reports.history import read_history
from d2go_fbnetv5.utils.checkpoints import read_tensors

SIZE = 1024 * 1024


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and a file that leaves so many bytes of it free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")

    def leave(free):
        (folder / "filler").unlink(missing_ok=True)
        if free is not None:
            (folder / "filler").write_bytes(bytes(SIZE - free))

    yield folder, leave
    subprocess.run(["umount", "-l", str(folder)], check=True)


def what_it_came_to(run):
    """Weights, their average, and the history but for times, as plain values."""
    state = read_tensors(run / "model_final.pth")
    weights = [{key: value.tolist() for key, value in state[part].items()} for part in ("model", "ema")]
    return weights, [{k: v for k, v in record.items() if "time" not in k} for record in read_history(run)]


def test_a_full_disk_at_any_moment(stub, stub_args, tmp_path, disk, capfd):
    folder, leave = disk
    assert stub.main(stub_args("whole")) == 0
    refused = set()
    for free in (0, *range(8, 200, 12)):
        run = folder / f"run{free}"
        leave(free * 1024)
        capfd.readouterr()
        status = stub.main(stub_args(run))
        out = capfd.readouterr().err
        if status:
            assert status == 2 and "Traceback" not in out and "enforce" not in out, out
            line = out.strip().splitlines()[-1]
            found = re.search(
                r"No space left on device: '(.*)'$|OUTPUT_DIR .* cannot be written: No space", line
            )
            assert found, out
            refused.add(os.path.basename(found[1]).split(".")[0] if found[1] else "config")
        leave(None)
        for path in run.glob("model_*.pth"):
            assert torch.isfinite(read_tensors(path)["model"]["fc.weight"]).all()
        if status:
            assert stub.main(stub_args(run, "--resume")) == 0
            assert what_it_came_to(run) == what_it_came_to(tmp_path / "whole")
            assert not list(run.glob("*.tmp"))
        subprocess.run(["rm", "-r", str(run)], check=True)
    assert "config" in refused and any(name.startswith("model_") for name in refused), refused
    assert len(refused) >= 3, refused


def test_a_folder_that_vanishes_or_becomes_a_file_ends_the_run_in_one_sentence(
    stub, stub_args, tmp_path, capsys, monkeypatch
):
    original = stub.StubModel.forward
    for kind in ("gone", "file"):
        run = tmp_path / kind

        def vanishing(self, batch, run=run, kind=kind):
            if self.training and int(self.step_count) == 4:
                run.rename(tmp_path / f"{kind}.moved")
                if kind == "file":
                    run.touch()
            return original(self, batch)

        monkeypatch.setattr(stub.StubModel, "forward", vanishing)
        assert stub.main(stub_args(kind)) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message and f"{kind}/model_0000005.pth" in message
