"""What a pipeline gives its network and how it guides, found without running the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffaccel.morse.probe import Probe, of_branch, probe
from tests import tiny

TEXT = (tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)


def _sd_call(size: int, scale: float, **more: Any) -> dict[str, Any]:
    text = {"prompt_embeds": torch.full((size, *TEXT), 1.0), "negative_prompt_embeds": torch.full((size, *TEXT), -1.0)}
    return {**text, "height": 8, "width": 8, "num_inference_steps": 4, "guidance_scale": scale, **more}


def _flux_call(size: int, scale: float) -> dict[str, Any]:
    text = {"prompt_embeds": torch.ones(size, *TEXT), "pooled_prompt_embeds": torch.ones(size, tiny.TEXT_WIDTH)}
    text |= {f"negative_{name}": -value for name, value in text.items()}
    return {**text, "height": 32, "width": 32, "num_inference_steps": 4, "true_cfg_scale": scale}


def _sd() -> Any:
    pipe = tiny.stable_diffusion()
    pipe.vae_scale_factor = 1
    return pipe


def test_batched_guidance_is_two_branches_of_one_call() -> None:
    found = probe(_sd(), **_sd_call(3, 7.5))
    assert len(found.calls) == 1
    assert found.size == 3
    assert found.branches(found.calls[0]) == 2
    torch.testing.assert_close(found.weights, torch.tensor([-6.5, 7.5]))
    text = found.calls[0].conditioning["encoder_hidden_states"]
    assert text[:3].eq(-1).all()
    assert text[3:].eq(1).all()
    prompt = of_branch(found.calls[0], 1, 3)
    assert prompt.conditioning["encoder_hidden_states"].eq(1).all()
    assert len(prompt.sample) == 3


def test_separate_guidance_is_two_calls() -> None:
    found = probe(tiny.flux(), **_flux_call(2, 3.0))
    assert [found.branches(call) for call in found.calls] == [1, 1]
    torch.testing.assert_close(found.weights, torch.tensor([3.0, -2.0]))
    assert found.time_scale == pytest.approx(1.0)  # Flux gives its transformer sigma
    assert found.calls[0].conditioning["img_ids"].shape == (16, 3)


def test_a_sample_that_is_kept_twice_and_variances_beside_the_noise() -> None:
    found = probe(tiny.dit(), class_labels=[1, 2], guidance_scale=4.0, num_inference_steps=4)
    assert found.size == 2
    torch.testing.assert_close(found.weights, torch.tensor([4.0, -3.0]))  # DiT has the classes first
    assert found.calls[0].conditioning["class_labels"].tolist() == [1, 2, 1000, 1000]


def test_without_guidance_there_is_one_branch() -> None:
    found = probe(_sd(), **_sd_call(2, 1.0))
    torch.testing.assert_close(found.weights, torch.ones(1))


def test_the_network_does_not_run_and_the_pipeline_is_as_it_was() -> None:
    pipe, ran = _sd(), list[int]()
    before = dict(vars(pipe.unet)), dict(vars(pipe.scheduler))
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: ran.append(1))
    probe(pipe, **_sd_call(2, 7.5))
    handle.remove()
    assert not ran
    assert "forward" not in vars(pipe.unet)
    assert "step" not in vars(pipe.scheduler)
    assert vars(pipe.unet).keys() == before[0].keys()
    assert vars(pipe.scheduler).keys() == before[1].keys()


def test_outputs_combine_as_the_pipeline_combines_them() -> None:
    pipe = tiny.flux()
    found = probe(pipe, **_flux_call(2, 3.0))
    seen: list[Tensor] = []
    real = pipe.scheduler.step
    pipe.scheduler.step = lambda output, *args, **kwargs: (seen.append(output), real(output, *args, **kwargs))[1]
    latents = found.calls[0].sample
    pipe(**_flux_call(2, 3.0), latents=latents, output_type="latent")
    time = torch.ones(2)
    with torch.no_grad():
        outputs = [call(pipe.transformer, latents, time) for call in found.calls]
    torch.testing.assert_close(found.combined(outputs), seen[0])


def test_guidance_that_is_no_weighted_sum_is_refused_and_leaves_no_trace() -> None:
    pipe = _sd()
    with pytest.raises(ValueError, match="weighted sum"):
        probe(pipe, **_sd_call(2, 7.5, guidance_rescale=0.7))
    assert "forward" not in vars(pipe.unet)
    assert "step" not in vars(pipe.scheduler)


def test_a_call_that_the_pipeline_refuses_leaves_no_trace() -> None:
    pipe = _sd()
    with pytest.raises(ValueError, match="prompt"):
        probe(pipe)
    assert "forward" not in vars(pipe.unet)
    assert "step" not in vars(pipe.scheduler)


def test_a_pipeline_with_two_denoisers_is_refused() -> None:
    pipe = tiny.flux()
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(ValueError, match="one denoiser"):
        probe(pipe, **_flux_call(1, 3.0))


def test_a_probe_tells_branches_of_each_call() -> None:
    found = probe(_sd(), **_sd_call(1, 7.5))
    assert isinstance(found, Probe)
    assert found.size == 1
    assert found.branches(found.calls[0]) == 2
