"""Do checkpoints of another project's policies give the network that wrote them, and is what does not fit refused?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from diffaccel.pipelines.policy import PolicyPipeline
from tests.policies import ACTION, EXECUTED, HORIZON, OBSERVATION, OBSERVED, decoder_policy, query, unet_policy

State = dict[str, Tensor]


def state_of(policy: nn.Module) -> State:
    """The state dict as that project's policies write it: a normalizer with its statistics, and empty parameters."""
    model = {f"model.{name}": value for name, value in policy.model.state_dict().items()}
    fields = {"obs": OBSERVATION, "action": ACTION}
    normalizer = {
        f"normalizer.params_dict.{field}.{part}": policy.normalizer[f"{field}_{part}"].detach()
        for field in fields
        for part in ("scale", "offset")
    }
    statistics = {
        f"normalizer.params_dict.{field}.input_stats.{part}": torch.zeros(dim)
        for field, dim in fields.items()
        for part in ("min", "max", "mean", "std")
    }
    empty = {"_dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}
    return {name: value.clone() for name, value in (model | normalizer | statistics | empty).items()}


@pytest.mark.parametrize(
    "config", [{}, {"causal_attn": False}, {"n_cond_layers": 2}, {"n_emb": 48, "n_layer": 3}, {"n_head": 8}], ids=str
)
def test_the_pipeline_decides_what_the_policy_decided(config: dict[str, Any]) -> None:
    policy = decoder_policy(calls=6, **config)
    pipe = PolicyPipeline.from_diffusion_policy(
        state_of(policy),
        policy.noise_scheduler,
        n_action_steps=EXECUTED,
        num_inference_steps=6,
        n_head=config.get("n_head", 4),
    )
    assert (pipe.config.horizon, pipe.config.n_obs_steps) == (HORIZON, OBSERVED)
    expected = query(policy, batch=2, seed=3)
    torch.manual_seed(3)
    given = torch.randn(2, OBSERVED, OBSERVATION, generator=torch.Generator().manual_seed(3))
    assert torch.equal(pipe(given).actions, expected)


def test_what_shapes_do_not_tell_is_taken_from_the_published_configuration() -> None:
    pipe = PolicyPipeline.from_diffusion_policy(state_of(decoder_policy()), n_action_steps=EXECUTED)
    assert type(pipe.scheduler).__name__ == "DDPMScheduler"
    assert pipe.default_steps == 100
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert not pipe.denoiser.training
    quick = PolicyPipeline.from_diffusion_policy(
        state_of(decoder_policy()), DDIMScheduler(50), 7, num_inference_steps=5
    )
    assert (quick.default_steps, quick.config.n_action_steps) == (5, 7)


def test_files_and_payloads(tmp_path: Path) -> None:
    averaged, last = state_of(decoder_policy()), state_of(decoder_policy())
    last["model.head.bias"] += 1
    payload = {"state_dicts": {"model": last, "ema_model": averaged, "optimizer": {"step": 3}}}
    torch.save(payload, tmp_path / "latest.ckpt")
    torch.save(averaged, tmp_path / "policy.pt")
    save_file(averaged, tmp_path / "policy.safetensors")

    def bias(source: Any, **options: Any) -> Tensor:
        return PolicyPipeline.from_diffusion_policy(source, n_action_steps=4, **options).denoiser.head.bias

    for source in (payload, tmp_path / "latest.ckpt", str(tmp_path / "policy.pt"), tmp_path / "policy.safetensors"):
        assert torch.equal(bias(source), averaged["model.head.bias"])
    assert torch.equal(bias(tmp_path / "latest.ckpt", ema=False), last["model.head.bias"])
    del payload["state_dicts"]["ema_model"]
    assert torch.equal(bias(payload), last["model.head.bias"])


def test_one_number_normalizes_all_dimensions() -> None:
    state = state_of(decoder_policy())
    state["normalizer.params_dict.action.scale"] = torch.ones(1)
    state["normalizer.params_dict.action.offset"] = torch.zeros(1)
    pipe = PolicyPipeline.from_diffusion_policy(state, n_action_steps=4)
    assert torch.equal(pipe.normalizer.action_scale, torch.ones(ACTION))


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.decoder.layers.0.linear1.bias"), r"not found: decoder\.layers\.0\.linear1\.bias"),
        (without("model.cond_obs_emb.weight"), r"model\.cond_obs_emb\.weight not found.*accelerate_pipeline\(policy"),
        (
            without("normalizer.params_dict.obs.offset"),
            r"normalizer is incomplete: normalizer\.params_dict\.obs\.offset",
        ),
        (lambda state: state | {"model.extra": torch.ones(1)}, r"not known: extra"),
        (lambda state: state | {"obs_encoder.conv.weight": torch.ones(1)}, r"it has obs_encoder\.conv\.weight"),
        (
            lambda state: state | {"model.ln_f.bias": torch.ones(3)},
            r"another shape: ln_f\.bias \(3,\) instead of \(32,\)",
        ),
        (lambda state: state | {"normalizer.params_dict.image.scale": torch.ones(1)}, "beside obs and action"),
        (lambda state: {"state_dicts": {"optimizer": state}}, "no state dict named model, only optimizer"),
        (lambda state: {"cfg": 3}, "no state dict of tensors: cfg"),
        (lambda state: {}, "it is empty"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: Callable[[State], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyPipeline.from_diffusion_policy(change(state_of(decoder_policy())))


def test_a_convolutional_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer policy with observations as condition tokens"):
        PolicyPipeline.from_diffusion_policy(state_of(unet_policy()))


def test_heads_and_horizons_are_checked() -> None:
    with pytest.raises(ValueError, match="n_head=5 does not divide the width 32"):
        PolicyPipeline.from_diffusion_policy(state_of(decoder_policy()), n_head=5)
    with pytest.raises(ValueError, match="horizon=8 cannot hold n_obs_steps=2 and n_action_steps=8"):
        PolicyPipeline.from_diffusion_policy(state_of(decoder_policy()), n_action_steps=8)


class Harmful:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize("held", [Harmful(), SimpleNamespace(horizon=8)], ids=["code", "configuration"])
def test_files_that_hold_more_than_tensors_are_not_opened(held: Any, tmp_path: Path) -> None:
    torch.save({"cfg": held, "state_dicts": {"model": state_of(decoder_policy())}}, tmp_path / "latest.ckpt")
    with pytest.raises(ValueError, match=r"could run code from it.*payload\['state_dicts'\]\['ema_model'\]"):
        PolicyPipeline.from_diffusion_policy(tmp_path / "latest.ckpt")


def test_files_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pt"):
        PolicyPipeline.from_diffusion_policy(tmp_path / "absent.pt")
    torch.save(state_of(decoder_policy()), tmp_path / "policy.pt")
    whole = (tmp_path / "policy.pt").read_bytes()
    for name, content in (("half.pt", whole[: len(whole) // 2]), ("empty.pt", b""), ("half.safetensors", whole[:100])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            PolicyPipeline.from_diffusion_policy(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        PolicyPipeline.from_diffusion_policy(tmp_path / "list.pt")
