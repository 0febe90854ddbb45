"""Where a model is, and its configuration files; imports no model code, so that a wrong name is refused at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diffaccel.pipelines import bundled

INDEX = "model_index.json"
DEFAULTS = "call_defaults.json"  # beside the index: arguments of every call that does not say otherwise


def locate(model: str) -> str:
    """The folder of a bundled name, or the folder or hub id itself.

    Raises:
        ValueError: neither a bundled name, nor a folder with a pipeline, nor written like a hub id.
        FileNotFoundError: the bundled folder was not installed.
    """
    if model in (*bundled.NAMES, *bundled.UNCONDITIONAL):
        return str(bundled.path(model))
    if model and Path(model).is_dir():
        if not (Path(model) / INDEX).is_file():
            raise ValueError(f"{model} has no {INDEX}: give the folder that pipe.save_pretrained(...) wrote")
        return model
    owner, _, name = model.partition("/")
    if not owner or not name or "/" in name or owner in (".", "..", "~"):
        names = ", ".join((*bundled.NAMES, *bundled.UNCONDITIONAL))
        if model in bundled.TEXT:
            raise ValueError(f"{model} writes text: use diffaccel generate-text, or give one of {names}")
        raise ValueError(f"there is no {model!r}: give {names}, a folder with a {INDEX}, or a hub id (owner/name)")
    return model


def read_json(source: str, file: str = INDEX) -> dict[str, Any]:
    """A configuration file of the folder or hub id `source`. From the hub, this one file is fetched.

    Raises:
        OSError: it cannot be read or fetched.
    """
    path = Path(source) / file if Path(source).is_dir() else Path(_fetch(source, file))
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise OSError(f"{source} has no {file}: it is not complete") from error
    except (ValueError, TypeError) as error:
        raise OSError(f"{path} is not valid JSON: {error}") from error


def call_defaults(source: str) -> dict[str, Any]:
    """Arguments that calls of the pipeline in folder `source` need unless they say otherwise; empty for most."""
    return read_json(source, DEFAULTS) if (Path(source) / DEFAULTS).is_file() else {}


def fingerprint(source: str) -> str:
    """Twelve hexadecimal digits that change with the files of the folder `source`, or with the name of a hub id.

    Calibrations do not count. Of each other file, its name, its size, and up to 64 kB from its beginning and its end
    are looked at: training changes all weights, and large models need not be read as a whole.
    """
    digest = hashlib.sha256(b"" if Path(source).is_dir() else source.encode())
    for path in sorted(Path(source).rglob("*") if Path(source).is_dir() else ()):
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("calibration-"):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(source).as_posix()} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**16))
                file.seek(max(0, size - 2**16))
                digest.update(file.read(2**16))
    return digest.hexdigest()[:12]


def _fetch(repository: str, file: str) -> str:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return hf_hub_download(repository, file)
    except HFValidationError as error:
        reason = f"not a hub id ({error})"
    except GatedRepoError:
        reason = "its owner asks for consent: give it on the model's page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "not there, or private: check the id, or log in with `hf auth login`"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached and it is not in the cache: check the connection, or give a folder"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set and it is not in the cache: unset the variable, or give a folder"
    except EntryNotFoundError:
        reason = "the repository has no such file, so it holds no diffusers pipeline"
    except OSError as error:
        reason = str(error)
    raise OSError(f"cannot get {file} of {repository} from the hub: {reason}")
