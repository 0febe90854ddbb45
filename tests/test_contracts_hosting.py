"""What else people do to a pipeline: offloading, casting, adapters, copies, saving, threads. In any order with ours."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import FluxPipeline
from diffusers.hooks.group_offloading import ModuleGroup
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from tests import tiny
from tests.tiny import FAMILIES, Family

CPU = torch.device("cpu")


def model_offload(pipe: Any, network: nn.Module) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any, network: nn.Module) -> None:
    """The hooks of sequential offloading on every leaf; without a GPU, accelerate cannot move the weights as well."""
    if torch.cuda.is_available():
        pipe.enable_sequential_cpu_offload()
        return
    for module in network.modules():
        if not list(module.children()):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def block_offload(pipe: Any, network: Any) -> None:
    network.enable_group_offload(CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def leaf_offload(pipe: Any, network: Any) -> None:
    network.enable_group_offload(CPU, offload_device=CPU, offload_type="leaf_level")


def casting(pipe: Any, network: Any) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


PREPARE: dict[str, Callable[[Any, Any], None]] = {
    "model offload": model_offload,
    "sequential offload": sequential_offload,
    "group offload by blocks": block_offload,
    "group offload by leaves": leaf_offload,
    "layerwise casting": casting,
}


@pytest.mark.parametrize("first", ["prepared first", "accelerated first"])
@pytest.mark.parametrize("family", [FAMILIES["flux"], FAMILIES["sd"]], ids=["flux", "sd"])
@pytest.mark.parametrize("level", ["sublayer", "model"])
@pytest.mark.parametrize("prepare", PREPARE.values(), ids=PREPARE)
def test_skipping_and_results_stay(prepare: Callable[[Any, Any], None], level: str, family: Family, first: str) -> None:
    options = {"interval": 3, "level": level}
    reference, pipe = family.make(), family.make()
    if prepare is casting:
        round_trip(family.denoiser(reference))
    plain = family.run(reference)
    expected = family.run(accelerate_pipeline(reference, **options))
    network = family.denoiser(pipe)
    entered: Counter[str] = Counter()
    witness = leaf_of_first_block(network)
    if first == "prepared first":
        prepare(pipe, network)
        accelerate_pipeline(pipe, **options)
    else:
        accelerate_pipeline(pipe, **options)
        prepare(pipe, network)
    witness.register_forward_hook(lambda *_: entered.update(["call"]))
    assert torch.equal(family.run(pipe), expected)
    assert entered["call"] == len(pipe.acceleration.plan.computed()) < 8
    pipe.acceleration.remove()
    assert torch.equal(family.run(pipe), plain)


def leaf_of_first_block(network: nn.Module) -> nn.Module:
    """A layer that runs exactly if the first block's attention does."""
    return next(module for name, module in network.named_modules() if name.endswith(("to_q", "to_k")))


def round_trip(network: nn.Module) -> None:
    """Weights as layerwise casting leaves them: what float8 can hold, norms and embeddings left alone."""
    twin = copy.deepcopy(network)
    casting(None, twin)
    with torch.no_grad():
        for own, other in zip(network.parameters(), twin.parameters(), strict=True):
            own.copy_(other.to(own.dtype))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the toy Flux that touches projections in and outside of attention."""
    folder = tmp_path_factory.mktemp("lora")
    donor = tiny.flux_transformer()
    targets = ["to_q", "to_k", "proj_out", "proj_mlp", "net.2"]
    donor.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(donor))
    return folder


def with_lora(folder: Path, fused: bool = False) -> Any:
    pipe = tiny.flux()
    pipe.load_lora_weights(folder)
    if fused:
        pipe.fuse_lora()
    return pipe


@pytest.mark.parametrize("level", FAMILIES["flux"].levels)
def test_lora_loaded_fused_and_unloaded(lora: Path, level: str) -> None:
    options = {"interval": 3, "level": level}
    pipe = accelerate_pipeline(tiny.flux(), **options)
    without = tiny.run_flux(pipe)
    loaded = tiny.run_flux(accelerate_pipeline(with_lora(lora), **options))
    assert not torch.equal(loaded, without)
    pipe.load_lora_weights(lora)
    assert torch.equal(tiny.run_flux(pipe), loaded)
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run_flux(pipe), without)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    assert torch.equal(tiny.run_flux(pipe), tiny.run_flux(accelerate_pipeline(with_lora(lora, fused=True), **options)))
    pipe.acceleration.remove()
    assert torch.equal(tiny.run_flux(pipe), tiny.run_flux(with_lora(lora, fused=True)))


@pytest.mark.parametrize("moment", ["loaded", "unloaded"])
def test_removed_right_after_a_lora_came_or_went(lora: Path, moment: str) -> None:
    pipe = with_lora(lora) if moment == "unloaded" else tiny.flux()
    accelerate_pipeline(pipe, interval=3, level="sublayer")
    tiny.run_flux(pipe)
    if moment == "loaded":
        pipe.load_lora_weights(lora)
    else:
        pipe.unload_lora_weights()
    pipe.acceleration.remove()
    expected = tiny.run_flux(with_lora(lora) if moment == "loaded" else tiny.flux())
    assert torch.equal(tiny.run_flux(pipe), expected)
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
def test_a_deep_copy_is_plain_and_the_original_lives_on(family: Family) -> None:
    pipe = family.make()
    plain = family.run(pipe)
    expected = family.run(accelerate_pipeline(pipe, interval=3))
    duplicate = copy.deepcopy(pipe)
    assert duplicate.acceleration is None
    assert torch.equal(family.run(duplicate), plain)
    assert torch.equal(family.run(pipe), expected)
    assert torch.equal(family.run(accelerate_pipeline(duplicate, interval=3)), expected)
    pipe.acceleration.remove()
    assert torch.equal(family.run(duplicate), expected)
    assert torch.equal(family.run(pipe), plain)


@families
def test_a_pickled_network_and_scheduler_are_plain(family: Family) -> None:
    pipe = family.make()
    plain = family.run(pipe)
    expected = family.run(accelerate_pipeline(pipe, interval=3))
    fresh = family.make()
    setattr(fresh, family.network, pickle.loads(pickle.dumps(family.denoiser(pipe))))
    fresh.scheduler = pickle.loads(pickle.dumps(pipe.scheduler))
    assert torch.equal(family.run(fresh), plain)
    assert torch.equal(family.run(pipe), expected)


@families
def test_an_accelerated_pipeline_is_saved_as_if_it_were_not(family: Family, tmp_path: Path) -> None:
    pipe = family.make()
    pipe.save_pretrained(tmp_path / "plain")
    family.run(accelerate_pipeline(pipe, interval=3))
    pipe.save_pretrained(tmp_path / "accelerated")
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "plain", tmp_path / "accelerated")
    ]
    assert files[0] == files[1]
    empty = dict.fromkeys(name for name, part in pipe.components.items() if part is None)
    loaded = family.denoiser(type(pipe).from_pretrained(tmp_path / "accelerated", **empty))
    saved = family.denoiser(pipe).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())
    assert loaded.state_dict().keys() == saved.keys()


@families
def test_two_pipelines_in_two_threads(family: Family) -> None:
    pipes = [accelerate_pipeline(family.make(seed), interval=3 + seed) for seed in range(2)]

    def runs(pipe: Any) -> list[Tensor]:
        return [family.run(pipe, seed=seed, guidance=bool(seed % 2)) for seed in range(3)]

    one_by_one = [runs(pipe) for pipe in pipes]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(runs, pipes))
    assert all(torch.equal(a, b) for x, y in zip(one_by_one, together, strict=True) for a, b in zip(x, y, strict=True))


def test_blocks_that_idle_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group offloading by blocks, accelerated last: only the one group outside of all blocks is loaded every time."""
    loads: Counter[bool] = Counter()
    real = ModuleGroup.onload_

    def onload(group: ModuleGroup) -> None:
        loads[len(group.modules) == 1 and "Block" in type(group.modules[0]).__name__] += 1
        real(group)

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    pipe = tiny.flux()
    block_offload(pipe, pipe.transformer)
    loads.clear()
    tiny.run_flux(accelerate_pipeline(pipe, interval=3))
    computed = len(pipe.acceleration.plan.computed())
    blocks = len(pipe.transformer.transformer_blocks) + len(pipe.transformer.single_transformer_blocks)
    assert loads[True] == computed * blocks
    assert loads[False] >= 8
