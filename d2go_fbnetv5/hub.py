"""Trained models as folders that others take: the network, its weights as safetensors and a card, here or on a hub.

Such a folder holds no code and names none: what is opened is JSON, tensors and nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from d2go_fbnetv5.arch.cost import count_params
from d2go_fbnetv5.engine.card import CARD_FILE, SHARED_WEIGHTS, describe_training, write_card
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network
from d2go_fbnetv5.engine.predictor import Predictor, from_run, open_network
from d2go_fbnetv5.utils.checkpoints import save_safetensors
from d2go_fbnetv5.utils.errors import InputError, brief
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.files import SIGNATURE, write_atomically
from d2go_fbnetv5.utils.text_files import read_json_object

_README = "README.md"
_PIPELINES = {
    "cls": "image-classification",
    "det": "object-detection",
    "seg": "image-segmentation",
    "depth": "depth-estimation",
}
_KINDS = {True: "averaged over steps", False: "of the last step", None: None}
_OF_THE_NEWEST = ("iterations", "averaged", "metrics")


def save_pretrained(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    licence: str = "",
    half: bool = False,
) -> Path:
    """Write the model of a training as a folder to share: network.json, model.safetensors, card.json and README.md.

    The card says, for programs and for people, how the weights came about, what they reach, and their hash.

    Args:
        run: the training's OUTPUT_DIR, or such a folder.
        folder: is made if need be; what is there of an earlier call is replaced.
        weights: a checkpoint in place of the run's newest one.
        licence: under which others may use it, such as "Apache-2.0"; "" leaves it unsaid.
        half: round the kernels and matrices to float16, for a file of half the size; the model that is opened from it
            computes in float32 all the same.

    Returns:
        the folder, which `from_pretrained`, `create_model` and the commands' ``--run`` open.

    Raises:
        FileNotFoundError, InputError: the run lacks a file, or its model needs a user's own modules (IMPORTS).
        OSError: the folder cannot be written.
    """
    network, predictor, path = open_network(run), from_run(run, weights), Path(folder)
    if network.imports:
        raise InputError(
            f"run {os.fspath(run)} needs the module {network.imports[0]}, which whoever opens the model would run; "
            "allowed: a model without IMPORTS"
        )
    readme = path / _README
    if readme.is_file() and SIGNATURE not in readme.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{readme} is there and is none of a saved model; choose another folder")
    training = describe_training(run)
    if weights is not None:
        training = {key: value for key, value in training.items() if key not in _OF_THE_NEWEST}
    path.mkdir(parents=True, exist_ok=True)
    notes = {"author": SIGNATURE, "format": "pt"}  # transformers asks for the latter
    state = predictor.model.state_dict()
    if half:
        state.update(_rounded(predictor.model))
    save_safetensors(path / SHARED_WEIGHTS, state, notes)
    network.write(path, type(predictor.model))
    about = {"model": network.model, "parameters": count_params(predictor.model), "licence": ""}
    said = {"licence": licence} if licence else {}
    card = write_card(path, {**about, **training, **said, "limits": _limits(training)})
    write_atomically(readme, _describe(network, predictor, card))
    return path


def from_pretrained(source: str | os.PathLike[str], revision: str | None = None) -> Predictor:
    """Open a model that `save_pretrained` or `push_to_hub` has written.

    Args:
        source: its folder; or its name on Hugging Face's hub, "user/name", for which huggingface_hub must be installed.
        revision: of the hub's: a branch, a tag or a commit; the newest by default.

    Returns:
        a function of an image, 3 x H x W uint8 RGB, with the model, in evaluation mode, as ``model``.

    Raises:
        FileNotFoundError, InputError: names the file that is missing or wrong, or why the hub's cannot be had; also
            where the model names modules that would be run.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(os.fspath(source), revision)
    elif revision is not None:
        raise InputError(f"revision is {revision!r}, allowed with the folder {folder}: none")
    if read_json_object(folder / NETWORK_FILE).get("imports"):
        raise InputError(f"{folder / NETWORK_FILE}: imports names modules, which would be run; allowed: none")
    return from_run(folder, folder / SHARED_WEIGHTS)


def push_to_hub(run: str | os.PathLike[str], repo_id: str, private: bool = False) -> str:
    """Put the model of a training on Hugging Face's hub, with the login that huggingface_hub has.

    Args:
        run: as `save_pretrained` takes it.
        repo_id: "user/name"; is made if it is not there.
        private: whether a new one is.

    Returns:
        the address of the commit.

    Raises:
        FileNotFoundError, InputError: as `save_pretrained`; huggingface_hub is missing, or the hub refuses.
    """
    hub = require_extra("push_to_hub", "huggingface_hub", "hub")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(run, folder)
        try:
            api = hub.HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
        except Exception as error:  # the hub's, which has many kinds of its own
            raise InputError(f"{repo_id}: cannot be put on the hub ({brief(error)})") from error


def _download(name: str, revision: str | None) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"{name}: there is no such folder, nor is it a name on the hub, user/name")
    hub = require_extra(f"{name}, which is no folder here,", "huggingface_hub", "hub")
    try:
        files = [NETWORK_FILE, SHARED_WEIGHTS, CARD_FILE]
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's, which has many kinds of its own
        raise InputError(
            f"{name}: is no folder here, and cannot be fetched from the hub ({brief(error)})"
        ) from error


def _rounded(model: nn.Module) -> dict[str, Tensor]:
    """Return kernels and matrices in float16; vectors are few, and buffers such as variances may leave its range."""
    return {name: weight.detach().half() for name, weight in model.named_parameters() if weight.dim() > 1}


def _limits(training: Mapping[str, Any]) -> str:
    """Return what nobody knows of a model."""
    sets = [training.get("configuration", {}).get(f"DATASETS.{part}") for part in ("TRAIN", "TEST")]
    seen, judged = (", ".join(names) if names else "its training's sets" for names in sets)
    return (
        f"It has been trained on {seen} alone and judged on {judged} alone. Nothing is known of how it does on other "
        "images, nor for whom it fails more often."
    )


def _describe(network: Network, predictor: Predictor, card: Mapping[str, Any]) -> str:
    """Return the card as people read it."""
    model, images = predictor.model, network.images
    rows = {
        "model": f"{network.model}, family {network.family}, {model.backbone.topology.num_stages} stages",
        "blocks kept": sum(model.backbone.topology.kept_per_path),
        "parameters": f"{card['parameters']:,}",
        "images": f"short side {images.short_side}, crop {images.crop}, long side at most {images.max_size}",
        **{f"classes of {task}": _listed(names) for task, names in predictor.parts.items()},
        "steps of training": card.get("iterations"),
        "seed": card.get("seed"),
        "weights": _KINDS.get(card.get("averaged")),
        "licence": card["licence"] or None,
        "SHA-256 of the weights": card["sha256"],
    }
    figures = [f"| {key} | {value:.4g} |" for key, value in card.get("metrics", {}).items()]
    judged = ["| metric | on the training's validation set |", "|---|---|", *figures, ""] if figures else []
    keys = [f"{key}: {json.dumps(value)}" for key, value in card.get("configuration", {}).items()]
    trained = ["Trained with these keys, and the defaults of all others:", "", "```text", *keys, "```", ""]
    return "\n".join(
        [
            "---",
            "library_name: d2go_fbnetv5",
            f"pipeline_tag: {_PIPELINES[next(iter(predictor.parts))]}",
            *([f"license: {card['licence'].lower()}"] if card["licence"] else []),
            "---",
            "",
            f"# A searched {network.model}",
            "",
            f"FBNetV5, {SIGNATURE}. `from_pretrained` of that package opens it; nothing in it is code.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items() if value is not None),
            "",
            *judged,
            *(trained if keys else []),
            card["limits"],
            "",
        ]
    )


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
