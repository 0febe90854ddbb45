"""How many masked positions a step decodes, and which. Pure bookkeeping of one sequence.

Counts follow the loops of LLaDA (ML-GSAI/LLaDA, `generate.py`) and Dream (`generation_utils.py`); the parallel rules
are those of Fast-dLLM (arXiv 2505.22618, NVlabs/Fast-dLLM) and of diffusers' `EntropyBoundScheduler`. Scores of
positions that must not be chosen are -inf (an entropy: inf). Equal scores: the lower position comes first.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]

RULES = ("llada", "dream")
GRIDS = ("prompt", "zero")

_ROUNDING = 1e-5  # of a float32 softmax


def transfer_counts(masked: int, steps: int, rule: str, eps: float = 1e-3) -> list[int]:
    """Positions to decode at each step; the sum is `masked`.

    Args:
        masked: masked positions at the start.
        steps: length of the result.
        rule: "llada": equal shares, the remainder goes to the first steps. "dream": shares of what is left by linear
            times from 1 to `eps`, rounded down in float32 as the official code does; a step may decode nothing and
            the last takes the rest.
        eps: last time of the rule "dream".

    Raises:
        ValueError: a number out of range, or an unknown rule.
    """
    check_whole("masked", masked, 0)
    check_whole("steps", steps, 1)
    if rule == "llada":
        share, rest = divmod(masked, steps)
        return [share + (step < rest) for step in range(steps)]
    if rule != "dream":
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie between 0 and 1, both excluded, got {eps}: it is the time of the last step")
    import torch  # only here: whoever asks for a method by name should not have to wait for it

    times = torch.linspace(1, eps, steps + 1).numpy()
    counts: list[int] = []
    for step in range(steps - 1):
        # number_transfer_tokens = int(num_mask_token * (1 - s / t))
        counts.append(int(np.float32(masked - sum(counts)) * (np.float32(1) - times[step + 1] / times[step])))
    return [*counts, masked - sum(counts)]


def most_confident(confidence: Scores, count: int) -> Indices:
    """The `count` best positions, best first.

    Args:
        confidence: (n,), any scale, higher is better; -inf where a position may not be chosen.
        count: 0 up to the number of positions that may be chosen.

    Raises:
        ValueError: scores that are no numbers or none at all, or more positions asked for than there are.
    """
    allowed = _allowed("confidence", confidence)
    check_whole("count", count, 0)
    if count > allowed:
        raise ValueError(f"{count} positions are asked for, but only {allowed} may be chosen: ask for no more")
    return _descending(confidence)[:count]


def by_threshold(confidence: Scores, threshold: float) -> Indices:
    """Positions whose confidence reaches `threshold`, ascending; the best one if none does.

    Args:
        confidence: (n,), any scale, higher is better; -inf where a position may not be chosen.
        threshold: in the scale of `confidence`; Fast-dLLM's is 0.9.

    Raises:
        ValueError: scores or a threshold that are no numbers, or no position that may be chosen.
    """
    _some(_allowed("confidence", confidence))
    if not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    chosen = np.flatnonzero(confidence >= threshold)
    return chosen if len(chosen) else _descending(confidence)[:1]


def by_factor(confidence: Scores, factor: float) -> Indices:
    """Positions in order of confidence c while c_(r) >= 1 - factor / (r + 1), r = 1, 2, ...; ascending.

    The best one passes in any case.

    Args:
        confidence: (n,) probabilities; -inf where a position may not be chosen.
        factor: f, at least 0; the more positions pass, the lower the confidence asked of each.

    Raises:
        ValueError: confidences that are no probabilities, a negative factor, or no position that may be chosen.
    """
    allowed = _allowed("confidence", confidence)
    _some(allowed)
    if not (np.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor must be a number of at least 0, got {factor}")
    order = _descending(confidence)[:allowed]
    ranked = confidence[order]
    if ranked[0] > 1 + _ROUNDING or ranked[-1] < -_ROUNDING:
        raise ValueError(
            f"factor needs probabilities, got confidences from {ranked[-1]:g} to {ranked[0]:g}: use the probability "
            "of the token as confidence, or choose by threshold"
        )
    passes = ranked >= 1 - factor / (np.arange(allowed) + 2)  # once one fails, so do all that follow
    passes[0] = True
    return np.sort(order[passes])


def by_entropy_bound(entropy: Scores, bound: float) -> Indices:
    """Positions in order of entropy while the entropies of those BEFORE sum up to `bound` at most; ascending.

    The first one always passes: its own entropy does not count against it.

    Args:
        entropy: (n,) in nats; inf where a position may not be chosen.
        bound: at least 0; diffusers' default is 0.1.

    Raises:
        ValueError: entropies that are negative or no numbers, a negative bound, or no position that may be chosen.
    """
    allowed = _allowed("entropy", -np.asarray(entropy))
    _some(allowed)
    if not (np.isfinite(bound) and bound >= 0):
        raise ValueError(f"the entropy bound must be a number of at least 0, got {bound}")
    order = _descending(-entropy)[:allowed]
    ranked = entropy[order]
    if ranked[0] < -_ROUNDING:
        raise ValueError(f"entropies are at least 0, got {ranked[0]:g}: give -sum(p log p), not its negative")
    before = np.concatenate([[0.0], np.cumsum(ranked)[:-1]])
    return np.sort(order[before <= bound])


def blocks(prompt: int, generated: int, block_length: int, grid: str = "prompt") -> list[range]:
    """Positions of each block, in order of decoding.

    Args:
        prompt: positions of the prompt.
        generated: positions to generate.
        block_length: positions of a block.
        grid: "prompt": blocks are counted from the end of the prompt (LLaDA). "zero": from position 0, as block
            diffusion is trained (LLaDA2): the first block may begin inside the prompt, the last is cut at the end.

    Raises:
        ValueError: a number out of range, an unknown grid, or a grid from the prompt's end that does not come out even.
    """
    check_whole("prompt", prompt, 0)
    check_whole("generated", generated, 1)
    check_whole("block_length", block_length, 1)
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}: choose one of {', '.join(GRIDS)}")
    end = prompt + generated
    if grid == "zero":
        first = prompt // block_length * block_length
        return [range(start, min(start + block_length, end)) for start in range(first, end, block_length)]
    if generated % block_length:
        lower = generated // block_length * block_length
        raise ValueError(
            f"{generated} positions cannot be cut into blocks of {block_length}: generate "
            f"{f'{lower} or ' if lower else ''}{lower + block_length} positions, or use a block length that divides "
            f"{generated}"
        )
    return [range(start, start + block_length) for start in range(prompt, end, block_length)]


def steps_of_blocks(steps: int, blocks: int) -> int:
    """Steps of each block.

    Raises:
        ValueError: numbers below 1, or steps that cannot be shared out evenly.
    """
    check_whole("steps", steps, 1)
    check_whole("blocks", blocks, 1)
    if steps % blocks:
        lower = steps // blocks * blocks
        raise ValueError(
            f"{steps} steps cannot be shared evenly by {blocks} blocks: use "
            f"{f'{lower} or ' if lower else ''}{lower + blocks} steps, or fewer and longer blocks"
        )
    return steps // blocks


def check_whole(name: str, value: int, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _allowed(name: str, scores: Scores) -> int:
    """How many positions may be chosen."""
    if np.ndim(scores) != 1 or not len(scores):
        raise ValueError(f"{name} must be a list of at least one position, got shape {np.shape(scores)}")
    if np.isnan(scores).any():
        raise ValueError(
            f"{name} of position {int(np.isnan(scores).argmax())} is not a number: the network's logits hold NaN, "
            "which half precision can cause; try bfloat16 or float32"
        )
    return int(np.count_nonzero(scores > -np.inf))


def _some(allowed: int) -> None:
    if not allowed:
        raise ValueError("no position may be chosen: every one is known already, or lies outside the block")


def _descending(scores: Scores) -> Indices:
    return np.argsort(-np.asarray(scores), kind="stable")
