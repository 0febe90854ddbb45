"""The text pipeline without an acceleration: loops of LLaDA and Dream, ragged batches, and all around a call."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from diffaccel import accelerate_pipeline
from diffaccel.dlm.prompts import MASKED
from diffaccel.pipelines.text import TextDiffusionPipeline
from tests.dlm.tiny import EOS, FAMILIES, MASK, PROMPTS, SPARE, VOCABULARY, model, pipeline, tokenizer

GENERATOR = torch.Generator


def _logits(network: Any, x: list[int], shift: bool = False) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(torch.tensor([x]), is_causal=False, use_cache=False).logits[0]
    return torch.cat([logits[:1], logits[:-1]]) if shift else logits


def _ranked(x: list[int], scores: Tensor, block: range) -> list[int]:
    """Masked positions of a block, the surest first."""
    return sorted((p for p in block if x[p] == MASK), key=lambda p: (-float(scores[p]), p))


def llada(network: Any, prompt: list[int], generated: int, steps: int, block: int, cfg: float = 0.0) -> list[int]:
    """LLaDA's generate loop at temperature 0, one sequence, in plain steps."""
    x = prompt + [MASK] * generated
    per_block = steps // (generated // block)
    for start in range(len(prompt), len(x), block):
        share, rest = divmod(block, per_block)
        for step in range(per_block):
            logits = _logits(network, x)
            if cfg:
                without = _logits(network, [MASK] * len(prompt) + x[len(prompt) :])
                logits = without + (cfg + 1) * (logits - without)
            logits[:, MASK] = -torch.inf
            best = logits.float().softmax(-1).max(-1)
            for p in _ranked(x, best.values, range(start, start + block))[: share + (step < rest)]:
                x[p] = int(best.indices[p])
    return x[len(prompt) :]


def dream(network: Any, prompt: list[int], generated: int, steps: int, remasking: str) -> list[int]:
    """Dream's loop at temperature 0, one sequence, in plain steps."""
    x = prompt + [MASK] * generated
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        logits = _logits(network, x, shift=True)
        logits[:, MASK] = -torch.inf
        p = logits.float().softmax(-1)
        first, second = p.topk(2).values.unbind(-1)
        negative_entropy = (p * (p + 1e-10).log()).sum(-1)
        scores = {"maskgit_plus": first, "topk_margin": first - second, "entropy": negative_entropy}[remasking]
        masked = x.count(MASK)
        count = int(masked * (1 - times[step + 1] / times[step])) if step < steps - 1 else masked
        for place in _ranked(x, scores, range(len(x)))[:count]:
            x[place] = int(p[place].argmax())
    return x[len(prompt) :]


def _tokens(output: Any) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]


@pytest.mark.parametrize("family", ["llada", "gqa"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("steps", "block", "cfg"), [(8, 8, 0.0), (8, 4, 0.0), (3, 8, 0.0), (4, 4, 1.5)])
def test_lladas_loop_token_by_token(family: str, attention: str, steps: int, block: int, cfg: float) -> None:
    pipe = pipeline(family)
    pipe.model.set_attn_implementation(attention)
    wanted = [llada(pipe.model, prompt, 8, steps, block, cfg) for prompt in PROMPTS]
    found = pipe(PROMPTS, num_inference_steps=steps, block_length=block, cfg_scale=cfg, eos_early_stop=False)
    assert _tokens(found) == wanted


@pytest.mark.parametrize("remasking", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("steps", [8, 3])
def test_dreams_loop_token_by_token(remasking: Any, steps: int) -> None:
    pipe = pipeline("dream")
    wanted = [dream(pipe.model, prompt, 8, steps, remasking) for prompt in PROMPTS]
    found = pipe(PROMPTS, num_inference_steps=steps, remasking=remasking, eos_early_stop=False)
    assert _tokens(found) == wanted


def test_a_block_causal_model_from_a_mask_of_blocks() -> None:
    """Each block decoded with everything after it cut off; attention between blocks by a mask written here."""
    pipe = pipeline("blocks")
    for prompt in PROMPTS:
        x = prompt + [MASK] * 8
        for start in range(len(prompt) // 4 * 4, len(x), 4):
            stop = min(start + 4, len(x))
            blocks = torch.arange(stop) // 4
            seen = (blocks[None] <= blocks[:, None])[None, None]
            while MASK in x[:stop]:
                with torch.no_grad():
                    logits = pipe.model(torch.tensor([x[:stop]]), attention_mask=seen, use_cache=False).logits[0]
                logits[:, MASK] = -torch.inf
                best = logits.float().softmax(-1).max(-1)
                place = _ranked(x, best.values, range(start, stop))[0]
                x[place] = int(best.indices[place])
        assert _tokens(pipe([prompt], eos_early_stop=False))[0] == x[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_inference_steps": 4, "cfg_scale": 1.0},
        {"temperature": 0.8},
        {"remasking": "random"},
        {"remasking": "entropy", "temperature": 0.7, "top_p": 0.9, "top_k": 8, "alg_temp": 0.3},
        {"remasking": "origin"},
        {"threshold": 0.3},
        {"factor": 1.5},
        {"entropy_bound": 0.6},
    ],
    ids=str,
)
def test_a_prompt_does_not_see_its_batch(family: str, how: dict[str, Any]) -> None:
    pipe = pipeline(family)
    together = pipe(PROMPTS, generator=[GENERATOR().manual_seed(seed) for seed in range(3)], **how)
    for number, prompt in enumerate(PROMPTS):
        alone = pipe([prompt], generator=[GENERATOR().manual_seed(number)], **how)
        assert _tokens(alone)[0] == _tokens(together)[number]
        assert MASK not in _tokens(alone)[0]


def test_blocks_of_a_batch_and_an_early_end() -> None:
    pipe = pipeline("llada", gen_length=12, block_length=4, eos_token_id=SPARE)
    ends = set()
    for seed in range(8):
        pipe.register_modules(model=model(num_key_value_heads=4, seed=seed))
        with_stop, without = pipe(PROMPTS), pipe(PROMPTS, eos_early_stop=False)
        decoded = 0
        for early, late in zip(_tokens(with_stop), _tokens(without), strict=True):
            done = 12 if SPARE not in late else (late.index(SPARE) // 4 + 1) * 4
            assert early == late[:done] + [SPARE] * (12 - done)
            decoded += done
            ends.add(done)
        assert with_stop.texts == without.texts
        assert with_stop.report.tokens == decoded
        assert without.report.tokens == 36
    assert len(ends) > 1


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    pipe, how = pipeline(), {"temperature": 1.0}

    def drawn(prompts: list[list[int]], seed: int) -> list[list[int]]:
        return _tokens(pipe(prompts, generator=GENERATOR().manual_seed(seed), **how))

    three = drawn([PROMPTS[0]] * 3, 0)
    assert three[0] != three[1] != three[2]
    assert drawn([PROMPTS[0]] * 2, 0) == three[:2]  # not on how many follow
    assert drawn([PROMPTS[0], PROMPTS[2]], 0)[0] == three[0]
    assert drawn([PROMPTS[0]] * 3, 1) != three
    torch.manual_seed(4)
    one = _tokens(pipe(PROMPTS, **how))
    torch.manual_seed(4)
    assert _tokens(pipe(PROMPTS, **how)) == one
    assert _tokens(pipe(PROMPTS, **how)) != one


def test_tokens_and_texts_as_prompts() -> None:
    pipe = pipeline()
    wanted = pipe([[3, 1, 4]])
    texts = [pipe("w3 w1 w4"), pipe(["w3 w1 w4"])]
    tokens = [
        pipe([3, 1, 4]),
        pipe(torch.tensor([3, 1, 4])),
        pipe(torch.tensor([[3, 1, 4]])),
        pipe([np.array([3, 1, 4])]),
    ]
    for output in texts + tokens:
        assert output.texts == wanted.texts
        assert _tokens(output) == _tokens(wanted)
    assert pipe(["w3 w1 w4", "w9"]).texts == pipe([[3, 1, 4], [9]]).texts
    assert wanted.sequences[0].shape == (8,)
    assert pipe("").texts == pipe([[]]).texts  # nothing given: a text from scratch


def test_texts_end_where_the_text_ends() -> None:
    pipe = pipeline()
    pipe.register_to_config(eos_token_id=None)
    whole = pipe(PROMPTS)
    chosen = _tokens(whole)[0][4]
    pipe.register_to_config(eos_token_id=chosen)
    cut = pipe(PROMPTS, eos_early_stop=False)
    assert _tokens(cut) == _tokens(whole)
    first = _tokens(whole)[0]
    assert cut.texts[0] == pipe.tokenizer.decode(first[: first.index(chosen)], skip_special_tokens=True)


def test_a_mask_is_no_answer() -> None:
    pipe = pipeline()
    with torch.no_grad():
        pipe.model.lm_head.weight[MASK] = 3 * pipe.model.lm_head.weight.mean(0) + 3 * pipe.model.lm_head.weight[4]
    prompt = PROMPTS[0] + [MASK] * 8
    assert (_logits(pipe.model, prompt).argmax(-1) == MASK).any()
    for how in ({}, {"temperature": 1.0}, {"cfg_scale": 2.0}, {"remasking": "entropy", "temperature": 1.0}):
        assert all(MASK not in one for one in _tokens(pipe(PROMPTS, **how)))


def test_messages() -> None:
    template = "{% for m in messages %}{{ m['content'] }} w0 {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
    pipe = pipeline()
    talk = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    with pytest.raises(ValueError, match="chat template"):
        pipe(messages=talk)
    pipe.tokenizer.chat_template = template
    assert pipe(messages=talk).texts == pipe([[3, 4, 0, 5, 0, 1]]).texts
    for wrong in ({}, {"prompt": "w1", "messages": talk}):
        with pytest.raises(ValueError, match="either prompt or messages"):
            pipe(**wrong)


def test_a_callback_sees_every_forward() -> None:
    pipe, seen = pipeline("dream"), []

    def watch(given: Any, number: int, done: int, tensors: dict[str, Any]) -> None:
        assert given is pipe
        masks = [int((one == MASK).sum()) for one in tensors["sequences"]]
        assert [len(one) for one in tensors["sequences"]] == [len(prompt) + 8 for prompt in PROMPTS]
        assert sum(masks) == 24 - done
        seen.append((number, done))

    output = pipe(PROMPTS, num_inference_steps=4, callback_on_step_end=watch)
    assert seen == [(0, 0), (1, 3), (2, 9), (3, 15), (4, 24)]
    assert output.report.forwards == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_ends_as_the_call(family: str) -> None:
    pipe = pipeline(family, eos_token_id=SPARE)
    items = list(pipe.stream(PROMPTS, num_inference_steps=8))
    output = pipe(PROMPTS, num_inference_steps=8)
    assert items[-1].texts == output.texts
    assert _tokens(items[-1]) == _tokens(output)
    assert items[0].texts == [MASKED * 8] * 3
    masks = [sum(text.count(MASKED) for text in item.texts) for item in items]
    assert masks == sorted(masks, reverse=True)
    assert masks[-1] == 0
    for earlier, later in itertools.pairwise(items):  # what is written stays
        for one, other in zip(earlier.sequences, later.sequences, strict=True):
            assert torch.equal(one[one != MASK], other[one != MASK])


def test_a_stream_is_checked_at_once_and_can_be_left() -> None:
    pipe = pipeline("blocks")
    with pytest.raises(ValueError, match="gen_length"):
        pipe.stream(PROMPTS, gen_length=0)
    stream = pipe.stream(PROMPTS)
    next(stream)
    assert pipe.model._forward_pre_hooks
    stream.close()
    assert not pipe.model._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    pipe = pipeline(family, gen_length=6)
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.conventions == pipe.conventions
    assert loaded.config.gen_length == 6
    assert _tokens(loaded(PROMPTS)) == _tokens(pipe(PROMPTS))
    assert loaded("w3 w4").texts == pipe("w3 w4").texts


@pytest.mark.parametrize("options", [{}, {"shift": True, "block_length": 4}, {"gen_length": 5}])
def test_defaults_are_the_pipelines(options: dict[str, Any]) -> None:
    pipe = pipeline(**options)
    how = pipe.decoding()
    assert how.generated == how.steps == options.get("gen_length", 8)
    assert how.block_length == options.get("block_length")
    assert how.sampler.remasking == ("maskgit_plus" if options.get("shift") else "low_confidence")
    texts, sequences = pipe(PROMPTS, return_dict=False)
    assert texts == pipe(PROMPTS).texts
    assert [len(one) for one in sequences] == [how.generated] * 3


def test_the_report() -> None:
    pipe = pipeline()
    report = pipe(PROMPTS, num_inference_steps=4, cfg_scale=0.5).report
    rows = 4 * 2 * sum(len(prompt) + 8 for prompt in PROMPTS)
    assert (report.forwards, report.steps, report.sequences, report.tokens) == (4, 4, 3, 24)
    assert report.rows == report.whole == rows
    assert (report.cache, report.cache_ratio, report.method, report.network) == (0, 0.0, None, "LlamaForCausalLM")
    assert report.table.computed == [13] * 4
    assert report.margin is None
    assert report.seconds > 0
    assert "24 tokens in 4 forwards" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["table"] == [13] * 4


def test_half_precision() -> None:
    pipe = pipeline().to(torch.bfloat16)
    assert all(len(one) == 8 and MASK not in one for one in _tokens(pipe(PROMPTS)))


def _forwards(pipe: Any) -> list[int]:
    calls: list[int] = []
    pipe.model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gen_length": 0}, "gen_length must be a whole number of at least 1"),
        ({"gen_length": 2.5}, "gen_length must be a whole number"),
        ({"gen_length": "8"}, "gen_length must be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number"),
        ({"num_inference_steps": 9}, "a step decodes at least one token"),
        ({"block_length": 3}, "cannot be cut into blocks of 3"),
        ({"block_length": 0}, "block_length must be a whole number"),
        ({"block_length": 2, "num_inference_steps": 6}, "cannot be shared evenly by 4 blocks"),
        ({"cfg_scale": -1.0}, "cfg_scale must be 0"),
        ({"cfg_scale": float("nan")}, "cfg_scale must be 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"remasking": "best"}, "remasking must be one of"),
        ({"threshold": 2.0}, "threshold must be in 0..1"),
        ({"threshold": 0.9, "factor": 1.0}, "different rules for the same decision"),
        ({"threshold": 0.9, "remasking": "random"}, "how sure the model is"),
        ({"factor": 0.9, "remasking": "entropy"}, "how sure the model is"),
        ({"threshold": 0.9, "remasking": "maskgit_plus", "alg_temp": 1.0}, "alg_temp draws positions"),
        ({"top_p": 0.9}, "give one of its remasking rules"),
        ({"alg_temp": 0.9}, "give one of them"),
        ({"prompt": []}, "there is no prompt"),
        ({"prompt": [[3, MASK]]}, r"prompt 0 holds the mask token \(30\)"),
        ({"prompt": [[3], [4, VOCABULARY]]}, "prompt 1 holds tokens from 4 to 32, but the model knows 0 to 31"),
        ({"prompt": [[-1]]}, "prompt 0 holds tokens from -1"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_any_forward(given: dict[str, Any], told: str) -> None:
    pipe = pipeline()
    calls = _forwards(pipe)
    with pytest.raises(ValueError, match=told):
        pipe(**({"prompt": PROMPTS} | given))
    assert not calls


def test_generators_are_counted_before_any_forward() -> None:
    pipe = pipeline()
    calls = _forwards(pipe)
    with pytest.raises(ValueError, match="1 generators for 3 prompts"):
        pipe(PROMPTS, generator=[GENERATOR()])
    assert not calls


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 4}, "unexpected keyword argument 'steps'"),
        ({"prompt": [["w1", "w2"]]}, "a text or a list of tokens"),
        ({"prompt": torch.tensor([0.5])}, "a text or a list of tokens"),
    ],
    ids=str,
)
def test_bad_types_are_refused_before_any_forward(given: dict[str, Any], told: str) -> None:
    pipe = pipeline()
    calls = _forwards(pipe)
    with pytest.raises(TypeError, match=told):
        pipe(**({"prompt": PROMPTS} | given))
    assert not calls


def test_a_block_length_against_the_models_own_is_refused() -> None:
    pipe = pipeline("blocks")
    assert _tokens(pipe(PROMPTS, block_length=4)) == _tokens(pipe(PROMPTS))
    with pytest.raises(ValueError, match="whose blocks are 4 long"):
        pipe(PROMPTS, block_length=8)


def test_models_that_cannot_fill_in_masks_are_refused() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    causal = GPTJForCausalLM(GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **sizes))
    pipe = TextDiffusionPipeline(causal, tokenizer(), gen_length=4)
    with pytest.raises(ValueError, match="GPTJForCausalLM stays causal"):
        pipe(PROMPTS)
    with pytest.raises(TypeError, match="MambaForCausalLM is no decoder-only model"):
        TextDiffusionPipeline(MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, **sizes)), tokenizer())
    with pytest.raises(TypeError, match="Linear is no decoder-only model"):
        TextDiffusionPipeline(torch.nn.Linear(2, 2), tokenizer())


def test_a_mask_token_must_be_known() -> None:
    with pytest.raises(ValueError, match="has no mask token: pass mask_token_id"):
        TextDiffusionPipeline(model(), tokenizer(mask_token=None))
    for wrong in (VOCABULARY, -1):
        with pytest.raises(ValueError, match=f"mask_token_id={wrong}, but LlamaForCausalLM knows 0 to 31"):
            TextDiffusionPipeline(model(), tokenizer(), mask_token_id=wrong)
    given = TextDiffusionPipeline(model(), tokenizer(mask_token=None), mask_token_id=SPARE, eos_token_id=4)
    assert (given.config.mask_token_id, given.config.eos_token_id) == (SPARE, 4)
    assert pipeline().config.eos_token_id == EOS


def _sliding(window: int | None) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=window, **sizes)
    return MistralForCausalLM(config).double().eval()


@pytest.mark.parametrize("method", ["dkv", "fast_dllm"])
def test_models_whose_rows_cannot_be_kept_are_refused_when_a_method_is_attached(method: str) -> None:
    pipe = TextDiffusionPipeline(_sliding(4), tokenizer(), gen_length=4)
    with pytest.raises(ValueError, match="layers of kind sliding_attention"):
        accelerate_pipeline(pipe, method)
    assert getattr(pipe, "acceleration", None) is None
    accelerate_pipeline(TextDiffusionPipeline(_sliding(None), tokenizer(), gen_length=4), method)


class _StopError(Exception):
    pass


def _fail(pipe: Any, number: int, done: int, tensors: dict[str, Any]) -> None:
    if number == 2:
        raise _StopError


def _state(pipe: Any) -> dict[str, Any]:
    network = pipe.model
    hooks = [len(getattr(m, name)) for m in network.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    return {
        "pipe": {name: value for name, value in vars(pipe).items() if name != "acceleration"},
        "has": "acceleration" in vars(pipe),
        "config": copy.deepcopy(network.config.to_dict()),
        "attention": network.config._attn_implementation,
        "hooks": hooks,
        "forwards": [m.__dict__.get("forward") for m in network.modules()],
        "model": sorted(vars(network)),
    }


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llada", None, {}),
        ("blocks", None, {}),
        ("llada", "dkv", {}),
        ("llada", "sparsed", {"block_size": 4}),
        ("llada", "ssd", {"cache": "dual"}),
        ("blocks", "block_cache", {}),
    ],
)
def test_a_run_that_failed_leaves_nothing_behind(family: str, method: str | None, options: dict[str, Any]) -> None:
    pipe = pipeline(family)
    before, plain = _state(pipe), _tokens(pipe(PROMPTS))
    if method is not None:
        accelerate_pipeline(pipe, method, **options)
    wanted = _tokens(pipe(PROMPTS))
    with pytest.raises(_StopError) as held:  # and the error is kept, with all its frames
        pipe(PROMPTS, callback_on_step_end=_fail)
    assert held.value is not None
    assert _state(pipe) == before | {"has": method is not None}
    assert _tokens(pipe(PROMPTS)) == wanted
    if method is not None:
        pipe.acceleration.remove()
    assert _state(pipe) == before
    assert _tokens(pipe(PROMPTS)) == plain


def test_a_handle() -> None:
    pipe = pipeline()
    accelerate_pipeline(pipe, "dkv", refresh=4)
    handle = pipe.acceleration
    assert "no run yet" in str(handle)
    for early in (handle.report, lambda: handle.plan):
        with pytest.raises(RuntimeError, match="call it first"):
            early()
    with pytest.raises(ValueError, match="is accelerated already"):
        accelerate_pipeline(pipe, "ssd")
    output = pipe(PROMPTS)
    assert handle.report() == output.report
    assert handle.plan.computed == output.report.table.computed
    assert str(handle) == str(output.report)
    assert output.report.method == str(handle.method)
    assert copy.deepcopy(pipe).acceleration is None
    assert pickle.loads(pickle.dumps(handle)) is None
    with handle:
        pass
    assert "acceleration" not in vars(pipe)
    handle.remove()
    assert pipe(PROMPTS).report.method is None


def test_methods_of_pictures_are_refused_and_the_other_way_round() -> None:
    with pytest.raises(TypeError, match="writes text"):
        accelerate_pipeline(pipeline(), "taylorseer")
    with pytest.raises(TypeError, match="has no option 'rhoo'"):
        accelerate_pipeline(pipeline(), "sparsed", rhoo=0.5)
