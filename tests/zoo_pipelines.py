"""Every pipeline class of diffusers around toy denoisers: an object with its components, not one that can be run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from diffusers import DDIMScheduler, DiffusionPipeline

from tests.tiny import FAMILIES
from tests.zoo import specimen
from tests.zoo_census import components, pipelines, schedulers
from tests.zoo_findings import UNBUILDABLE, WHOLE

# Arguments of schedulers that have no defaults.
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 1},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 9},
}
# What the fields of pipelines' outputs hold.
_MADE = {
    "images": "pictures",
    "image": "pictures",
    "rgb": "pictures",
    "depth": "depth",
    "prediction": "maps",
    "frames": "video",
    "video": "video",
    "audio": "sound",
    "audios": "sound",
    "sound": "sound",
    "sequences": "text",
    "text": "text",
    "image_embeds": "embeddings",
    "image_embeddings": "embeddings",
    "prompt_embeds": "embeddings",
}


def assembled(name: str) -> DiffusionPipeline:
    """An object of the pipeline class `name` with toy denoisers and its schedulers; all other components are None."""
    kind = pipelines()[name]
    pipe: DiffusionPipeline = kind.__new__(kind)
    parts: dict[str, Any] = dict.fromkeys(kind._get_signature_keys(kind)[0])
    parts |= {part: specimen(kinds[0].__name__).network for part, kinds in components(kind).items()}
    for part, scheduler in schedulers(kind).items():
        made = scheduler or DDIMScheduler
        parts[part] = made(**_SCHEDULERS.get(made.__name__, {}))
    pipe.register_modules(**parts)
    return pipe


def reasons_against(name: str) -> list[str]:
    """Why the denoisers of the pipeline class `name` cannot be built at toy size; empty if they can."""
    kinds = [kind.__name__ for kinds in components(pipelines()[name]).values() for kind in kinds]
    return [UNBUILDABLE[kind] for kind in kinds if kind in UNBUILDABLE]


def makes(name: str) -> str:
    """What a pipeline returns, by the fields of its output and its name; empty where they do not tell."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(pipelines()[name].__call__)))
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    calls = [value for value in returned if isinstance(value, ast.Call) and "Output" in ast.unparse(value.func)]
    if not calls:
        return ""
    fields = [_MADE.get(keyword.arg or "", "") for keyword in calls[-1].keywords]
    if not any(fields):
        kind = ast.unparse(calls[-1].func)
        fields = ["pictures" if "Image" in kind else "sound" if "Audio" in kind else ""]
    if "Video" in name:
        fields = ["video" if field == "pictures" else field for field in fields]
    return ", ".join(dict.fromkeys(filter(None, fields)))


@cache
def run_whole() -> dict[str, str]:
    """Pipeline classes that tests run from their arguments to their output, and the test file that does."""
    return {type(family.make()).__name__: "test_contract.py" for family in FAMILIES.values()} | WHOLE
