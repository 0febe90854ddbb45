"""The model card of a bundled policy: what it is, what it learnt from, what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from diffaccel.metrics.bootstrap import Estimate
from diffaccel.pipelines.bundled.metaworld.demonstrations import AFTER, PUSH, Windows
from diffaccel.pipelines.bundled.metaworld.environment import LIMIT
from diffaccel.pipelines.bundled.metaworld.train import RECIPE
from diffaccel.pipelines.policy import PolicyPipeline

_PAGE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: robotics
tags: [diffusion-policy, metaworld, miniature]
---

# policy-{task}

A small diffusion policy for the task `{task}` of MetaWorld, a simulated Sawyer arm: the transformer of Diffusion
Policy (arXiv:2303.04137), fed with positions instead of pictures. It decides {executed} actions at a time from the last
{history} observations, by denoising a trajectory of {horizon} actions with DDPM in {steps} steps.

```python
from diffaccel.pipelines import bundled

pipe = bundled.policy("{task}")
actions = pipe(bundled.policy_observations("{task}")[:1]).actions  # (1, {executed}, {action})
```

Episodes need the simulator (`pip install 'diffaccel[policy]'`):

```python
from diffaccel.pipelines.bundled.metaworld.environment import World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player

print(rollout([World("{task}")], [0], Player(pipe, [0])))  # steps to success, None for a failure
```

## Parts

| part | class | |
|---|---|---|
| denoiser | `TransformerForDiffusion`: {layers} layers, {heads} heads, width {width} | {parameters} parameters |
| scheduler | `{scheduler}`, {steps} steps, `{schedule}`, predicts the noise | - |
| normalizer | `LinearNormalizer`, the range of the demonstrations to -1..1 | {observation} and {action} numbers |

Stored in float16, loaded in float32. `observations.safetensors` holds {shipped} pairs of observations of the
demonstrations, for caches that learn from them.

## Data

{episodes} demonstrations ({windows} windows) by MetaWorld's own scripted expert, recorded by
`diffaccel.pipelines.bundled.metaworld.demonstrations`. While it acts, its hand is pushed by normal noise whose
deviation is drawn for each episode from 0 to {push}, and its undisturbed action is what the policy learns;
{after} more steps are kept after success, episodes that fail are left out. Starts are those of seeds from
100,000 on, which no evaluation uses.

MetaWorld (MIT licence) is needed to record demonstrations and to run episodes, and is not part of this folder.

## Training

`python -m diffaccel.pipelines.bundled.metaworld.train --task {task} --minutes {minutes:.0f} --output DIR` on a CPU:
{samples} samples in that time on one core of a machine that others used as well. Muon for the matrices in the layers,
AdamW for the rest, batch {batch}, no dropout, linear decay to zero over the second half; the weights are an exponential
moving average.{note}

## Measured

{measured}

## Limits

- One task, one arm, positions instead of pictures: it shows how caches behave in closed loop, not how well a policy
  of this kind works on a robot.
- The network is small, so that what is not the network (scheduler, Python) takes a larger part of the time than in a
  large policy.
- Success has the interval of its number of episodes, and holds for MetaWorld 3.1.1 with MuJoCo 3.3.0.
"""


def card(
    task: str,
    pipe: PolicyPipeline,
    windows: Windows,
    shipped: int,
    history: Mapping[str, float],
    measured: Mapping[str, Estimate],
    note: str = "",
) -> str:
    """The text of a card.

    Args:
        task: of MetaWorld.
        pipe: the policy.
        windows: what it learnt from.
        shipped: observations of them in the folder.
        history: the last entry of its training's log.
        measured: success in closed loop, by name of the sampler.
        note: what else is to be said of the training.
    """
    network, scheduler, horizons = pipe.denoiser.config, pipe.scheduler.config, pipe.config
    return _PAGE.format(
        task=task,
        executed=horizons.n_action_steps,
        history=horizons.n_obs_steps,
        horizon=horizons.horizon,
        steps=scheduler.num_train_timesteps,
        schedule=scheduler.beta_schedule,
        scheduler=type(pipe.scheduler).__name__,
        layers=network.n_layer,
        heads=network.n_head,
        width=network.n_emb,
        parameters=f"{sum(weight.numel() for weight in pipe.denoiser.parameters()):,}",
        observation=network.cond_dim,
        action=network.output_dim,
        shipped=shipped,
        episodes=windows.episodes,
        windows=f"{len(windows.observations):,}",
        push=PUSH,
        after=AFTER,
        samples=f"{history['samples']:,.0f}",
        minutes=history["seconds"] / 60,
        batch=RECIPE.batch,
        measured=_table(measured),
        note=note and f"\n{note}",
    )


def _table(measured: Mapping[str, Estimate]) -> str:
    if not measured:
        return "Nothing yet."
    lines = [
        "Success in closed loop as shipped, loaded in float32, without any cache. Episodes begin as seeds 0, 1, ...",
        f"say, noise has the same seeds; an episode has failed after {LIMIT} steps. 95% intervals are Wilson's.",
        "Measured by `python -m diffaccel.pipelines.bundled.metaworld.export`.",
        "",
        "| sampler | episodes | success |",
        "|---|---|---|",
    ]
    for name, found in measured.items():
        lines.append(f"| {name} | {found.n} | {found.value:.2f} ({found.low:.2f}-{found.high:.2f}) |")
    return "\n".join(lines)
