"""Is the predicted effect of reuse on the action the one that is measured?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from diffaccel.additions import edited
from diffaccel.branches import layers
from diffaccel.effects import Effects, measure, reuse, segments
from diffaccel.macs import branch_macs
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.pipelines.policy import PolicyPipeline
from tests.policy_transformers import DiffusionTransformer, randomize

STEPS, HORIZON, OBSERVATION, ACTION = 10, 8, 5, 3
SHARE = 1e-2  # of a reuse: small enough to be linear, large enough for solvers that calculate in float32
# A network without training predicts samples of unit size; what follows from its noise grows beyond all bounds.
TRAINED = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    "ddpm": lambda: DDPMScheduler(variance_type="fixed_small", clip_sample=False, **TRAINED),
    "ddim": lambda: DDIMScheduler(clip_sample=False, **TRAINED),
    "dpmsolver": lambda: DPMSolverMultistepScheduler(**TRAINED),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
}
OBSERVATIONS = torch.randn(3, 2, OBSERVATION, generator=torch.Generator().manual_seed(5))


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_obs_steps": 2, "cond_dim": OBSERVATION, "n_layer": 2, "n_head": 4, "n_emb": 32, "causal_attn": True}
    made = TransformerForDiffusion(ACTION, ACTION, HORIZON, **{**sizes, **options})
    for parameter in made.parameters():  # as published, weights are so small that branches hardly add anything
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return made.eval()


def policy(scheduler: str = "ddim", denoiser: nn.Module | None = None) -> PolicyPipeline:
    """In float64, so that small differences are not lost among rounding errors."""
    scales = torch.linspace(0.5, 2, ACTION)
    normalizer = LinearNormalizer.of(OBSERVATIONS.flatten(0, 1), torch.randn(40, ACTION) * scales)
    made = PolicyPipeline(denoiser or network(), SCHEDULERS[scheduler](), normalizer, HORIZON, 2, 4, STEPS)
    return made.to(torch.float64)


def generators(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(len(OBSERVATIONS))]


def actions(pipe: PolicyPipeline) -> Tensor:
    """Normalized actions in float64, from the noise that `measure` takes with seed 0."""
    each = generators()
    with torch.no_grad():
        return pipe.sample(pipe.conditioning(OBSERVATIONS), pipe.noise(3, each), None, each)[:, 1:5]


def held(pipe: PolicyPipeline, rows: Mapping[int, Sequence[int]], share: float = 1.0) -> Tensor:
    """Actions if some blocks compute at these steps only, and else come nearer to what they added last by `share`."""
    calls: dict[int, int] = {}
    kept: dict[int, Tensor] = {}

    def edit(number: int, added: Tensor) -> Tensor:
        step = calls[number] = calls.get(number, -1) + 1
        if number not in rows or step in rows[number]:
            kept[number] = added
            return added
        return added + share * (kept[number] - added)

    with edited(layers(pipe.denoiser), edit):
        return actions(pipe)


def directions(probe: int) -> Tensor:
    signs = [np.random.default_rng((i, probe)).choice([-1.0, 1.0], size=(4, ACTION)) for i in range(len(OBSERVATIONS))]
    return torch.from_numpy(np.stack(signs))


def mean_square_along(change: Tensor, probes: int = 2) -> float:
    """What `measure` estimates: the squared product with its own directions, in the mean, by entry."""
    products = [(change * directions(probe)).sum((1, 2)) for probe in range(probes)]
    return torch.stack(products).square().mean().item() / change[0].numel()


@pytest.fixture(scope="module", params=list(SCHEDULERS))
def measured(request: pytest.FixtureRequest) -> tuple[PolicyPipeline, Effects]:
    pipe = policy(request.param)
    return pipe, measure(pipe, OBSERVATIONS, probes=2, progress=False)


def test_the_effect_of_one_block_reusing_one_step_is_that_of_a_small_difference(
    measured: tuple[PolicyPipeline, Effects],
) -> None:
    """The effect is linear: a hundredth of the reuse makes a hundredth of the change."""
    pipe, effects = measured
    for block in range(6):
        for step in (1, 4, 9):
            row = [s for s in range(STEPS) if s != step]
            change = (held(pipe, {block: row}, SHARE) - held(pipe, {block: row}, -SHARE)) / (2 * SHARE)
            assert effects.sensitivity[block, step] == pytest.approx(mean_square_along(change), rel=2e-2)
            assert effects.costs[block, step - 1, step] == effects.sensitivity[block, step]


def test_the_effect_of_all_blocks_reusing_one_step(measured: tuple[PolicyPipeline, Effects]) -> None:
    """They do not react to each other then, which gradients through single blocks would count."""
    pipe, effects = measured
    added: dict[int, list[Tensor]] = {}

    def keep(number: int, output: Tensor) -> Tensor:
        added.setdefault(number, []).append(output)
        return output

    with edited(layers(pipe.denoiser), keep):
        actions(pipe)

    def nearly(step: int, share: float) -> Tensor:
        calls = dict.fromkeys(range(6), -1)

        def edit(number: int, output: Tensor) -> Tensor:
            calls[number] += 1
            if calls[number] != step:
                return output
            # From what each adds in the full run, not from what it would add after the ones before it: none reacts.
            return added[number][step] + share * (added[number][step - 1] - added[number][step])

        with edited(layers(pipe.denoiser), edit):
            return actions(pipe)

    for step in (1, 5, 9):
        change = (nearly(step, SHARE) - nearly(step, -SHARE)) / (2 * SHARE)
        assert effects.together[step - 1, step] == pytest.approx(mean_square_along(change), rel=2e-2)


def test_errors_within_a_segment_add_up_with_their_signs() -> None:
    gradients, added = (torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    found = segments(reuse(gradients, added))
    for a in range(6):
        for e in range(6):
            terms = [(gradients[:, t] * (added[:, a] - added[:, t])).sum((1, 2)) for t in range(a, e + 1)]
            expected = sum(terms, torch.zeros(2))
            assert found[:, a, e].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_probes_estimate_the_squared_change_of_the_action() -> None:
    """With many random directions, the effect is the squared length by entry, whatever the directions were."""
    pipe, row = policy("ddpm"), [step for step in range(STEPS) if step != 5]
    effects = measure(pipe, OBSERVATIONS, probes=100, progress=False)
    change = (held(pipe, {2: row}, SHARE) - held(pipe, {2: row}, -SHARE)) / (2 * SHARE)
    assert effects.sensitivity[2, 5] == pytest.approx(change.square().mean().item(), rel=0.3)


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = policy("ddpm", network(p_drop_attn=0.1, p_drop_emb=0.1))
    pipe.denoiser.decoder.layers[0].train()
    pipe.denoiser.head.weight.requires_grad_(False)
    state = copy.deepcopy(pipe.denoiser.state_dict())

    def kept() -> list[Any]:
        modules = [(vars(module).keys(), module.training) for module in pipe.denoiser.modules()]
        return [
            [(set(names), training) for names, training in modules],
            [p.requires_grad for p in pipe.denoiser.parameters()],
        ]

    before = kept()
    with torch.no_grad():
        measure(pipe, OBSERVATIONS, probes=1, progress=False)
    assert kept() == before
    assert all(parameter.grad is None for parameter in pipe.denoiser.parameters())
    assert all(torch.equal(value, state[name]) for name, value in pipe.denoiser.state_dict().items())


def test_the_graph_is_let_go_of() -> None:
    pipe = policy("dpmsolver")
    measure(pipe, OBSERVATIONS, probes=1, progress=False)
    held_on = [output for output in pipe.scheduler.model_outputs if output is not None]
    assert not any(output.requires_grad for output in held_on)


@pytest.mark.parametrize("without", ["gradients", "inference"])
def test_effects_do_not_depend_on_batches_nor_on_what_is_around(without: str) -> None:
    pipe = policy("ddpm")
    around = torch.no_grad() if without == "gradients" else torch.inference_mode()
    whole = measure(pipe, OBSERVATIONS, progress=False, batch=3)
    with around:
        parts = measure(pipe, OBSERVATIONS.numpy(), progress=False, batch=2)
    assert np.allclose(whole.costs, parts.costs, rtol=1e-9, atol=0)
    assert np.allclose(whole.together, parts.together, rtol=1e-9, atol=0)
    assert not np.allclose(whole.costs, measure(pipe, OBSERVATIONS, seed=9, progress=False).costs, rtol=1e-2)


def test_networks_that_need_no_gradient_have_effects_too() -> None:
    """The encoder-only transformer takes a fused path where nothing needs a gradient."""
    bert = network(cond_dim=0, time_as_cond=False, causal_attn=False, n_obs_steps=None)
    bert.requires_grad_(False)
    found, kept = layers(bert), {}
    with edited(found, lambda number, added: kept.setdefault(number, added)):
        bert(torch.zeros(1, HORIZON, ACTION, requires_grad=True), 3)
    assert len(kept) == 4  # two layers of two branches


@pytest.mark.parametrize("rope", [True, False])
def test_what_gated_branches_add_is_after_the_gate(rope: bool) -> None:
    """Edited to what they add anyway, or to nothing, layers do what follows from their definition."""
    made = randomize(DiffusionTransformer(ACTION, 2 * OBSERVATION, rope=rope)).eval()
    features = made.transformer_blocks[0].adaLN_modulation[1].in_features
    stream, condition = torch.randn(2, HORIZON, made.input_proj.out_features), torch.randn(2, features)
    (first, *_) = found = layers(made)
    plain = first.module(stream, condition)
    kept: dict[int, Tensor] = {}
    with edited(found, lambda number, added: kept.setdefault(number, added)):
        assert torch.allclose(first.module(stream, condition), plain, atol=1e-6)
    assert torch.allclose(stream + kept[0] + kept[1], plain, atol=1e-6)
    with edited(found, lambda number, added: torch.zeros_like(added)):
        assert torch.equal(first.module(stream, condition), stream)
    assert torch.equal(first.module(stream, condition), plain)


def test_the_cost_of_branches_is_that_of_their_matrix_products() -> None:
    d, tokens, memory = 32, HORIZON, 3
    self_attention = 4 * d * d * tokens + 2 * tokens * tokens * d
    cross_attention = 2 * d * d * (tokens + memory) + 2 * tokens * memory * d
    pipe = policy()
    counted = branch_macs(layers(pipe.denoiser), lambda: pipe(OBSERVATIONS[:1], 1))
    assert counted == [self_attention, cross_attention, 8 * d * d * tokens] * 2


def test_branches_never_called_are_named() -> None:
    pipe = policy()
    with pytest.raises(RuntimeError, match=r"never called.*decoder\.layers\.0\.sa"):
        branch_macs(layers(pipe.denoiser), lambda: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes must be a whole number"),
        ({"batch": 0}, "batch must be"),
        ({"steps": 1}, "at least two"),
        ({"steps": 0}, "steps must be"),
        ({"observations": OBSERVATIONS[:0]}, "no observations"),
        ({"observations": OBSERVATIONS[:, :1]}, "observations must have shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(policy(), **{"observations": OBSERVATIONS, "progress": False, **options})


def test_an_accelerated_policy_is_refused() -> None:
    pipe = accelerate_pipeline(policy(), "taylorseer", level="sublayer")
    with pytest.raises(ValueError, match="already"):
        measure(pipe, OBSERVATIONS, progress=False)
