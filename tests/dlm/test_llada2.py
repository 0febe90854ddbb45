from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, DDPMPipeline, DDPMScheduler, LLaDA2Pipeline, UNet2DModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from diffaccel import accelerate_pipeline
from diffaccel.dlm.block_causal import block_causal, block_causal_mask
from diffaccel.dlm.llada2 import Llada2Session
from diffaccel.dlm.slots import SlotCache

MASK, EOS, VOCABULARY = 50, 49, 51


def _model(kind: str = "llama", **options: Any) -> Any:
    """In float64, so that tokens can only differ if the computation does; sharp enough for thresholds to matter."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"vocab_size": VOCABULARY, "num_key_value_heads": 2, **options}
    made: Any = LlamaForCausalLM(LlamaConfig(**sizes)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.25)
        made.lm_head.weight[MASK] = 0  # its logit is 0, so some other is larger: masks are filled
    return made.double().eval()


def _pipe(block_length: int, **options: Any) -> LLaDA2Pipeline:
    """A pipeline over a Llama that is block-causal, as LLaDA2 was trained to be."""
    model = _model(**options)
    block_causal(model, block_length)
    pipe = LLaDA2Pipeline(model, BlockRefinementScheduler(block_length=block_length))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _prompt(length: int, batch: int = 1) -> Tensor:
    return torch.randint(EOS, (batch, length), generator=torch.Generator().manual_seed(length))


def _generate(pipe: LLaDA2Pipeline, prompt: Tensor, generated: int, **options: Any) -> Tensor:
    settings: dict[str, Any] = {"eos_early_stop": False, "eos_token_id": EOS, "sampling_method": "auto", **options}
    output = pipe(input_ids=prompt, gen_length=generated, mask_token_id=MASK, output_type="seq", **settings)
    return output.sequences


def _both(pipe: LLaDA2Pipeline, prompt: Tensor, generated: int, **options: Any) -> tuple[Tensor, Tensor, Llada2Session]:
    """Tokens without the cache and with it."""
    plain = _generate(pipe, prompt, generated, **options)
    session = Llada2Session(pipe)
    session.attach()
    cached = _generate(pipe, prompt, generated, **options)
    session.detach()
    return plain, cached, session


@pytest.mark.parametrize("block_length", [1, 4, 7, 16])
@pytest.mark.parametrize("prompt", [1, 8, 13])
@pytest.mark.parametrize("editing", [None, 0.3])
def test_tokens_are_those_without_the_cache(block_length: int, prompt: int, editing: float | None) -> None:
    pipe = _pipe(block_length)
    options = {"num_inference_steps": 5, "threshold": 0.6, "editing_threshold": editing}
    plain, cached, session = _both(pipe, _prompt(prompt), 22, **options)
    assert torch.equal(plain, cached)
    assert (cached != MASK).all()
    assert session.report().cache_ratio > 0.2


def test_editing_happens_in_the_toy() -> None:
    # Else the test above says nothing of it.
    edited: list[int] = []

    def count(pipe: Any, step: int, index: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        edited.append(int(tensors["editing_transfer_index"].sum()))
        return {}

    options = {"num_inference_steps": 5, "threshold": 0.6, "editing_threshold": 0.3}
    inputs = {"callback_on_step_end": count, "callback_on_step_end_tensor_inputs": ["editing_transfer_index"]}
    _generate(_pipe(7), _prompt(13), 22, **options, **inputs)
    assert sum(edited) > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_other_models_and_attentions(attention: str, kind: str) -> None:
    pipe = _pipe(8, kind=kind)
    pipe.model.set_attn_implementation(attention)
    plain, cached, _ = _both(pipe, _prompt(11), 20, num_inference_steps=4)
    assert torch.equal(plain, cached)


def test_sampling_with_a_seed() -> None:
    pipe = _pipe(8)
    plain, cached = (
        _generate(pipe, _prompt(5), 24, temperature=0.8, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(plain, cached)  # the seed decides
    session = Llada2Session(pipe)
    session.attach()
    cached = _generate(pipe, _prompt(5), 24, temperature=0.8, generator=torch.Generator().manual_seed(7))
    other = _generate(pipe, _prompt(5), 24, temperature=0.8, generator=torch.Generator().manual_seed(8))
    assert torch.equal(plain, cached)
    assert not torch.equal(plain, other)


def test_a_batch_with_left_padding() -> None:
    pipe, prompt = _pipe(4), _prompt(11, batch=3)
    visible = torch.ones_like(prompt)
    visible[0, :6], visible[2, :1] = 0, 0
    plain, cached, session = _both(pipe, prompt, 12, attention_mask=visible, num_inference_steps=4)
    assert torch.equal(plain, cached)
    # What stands at the padding does not matter, with the cache either.
    session.attach()
    prompt[0, :6], prompt[2, 0] = 7, 8
    assert torch.equal(plain, _generate(pipe, prompt, 12, attention_mask=visible, num_inference_steps=4))


def test_a_text_that_ends_early() -> None:
    pipe, prompt = _pipe(4), _prompt(6, batch=2)
    at_once: dict[str, Any] = {"threshold": 0.0, "num_inference_steps": 1, "editing_threshold": None}
    # An end token that the toy does write, after three tokens or more, and that is not in the prompt.
    free = _generate(pipe, prompt, 24, **at_once)[0].tolist()
    where = next(i for i in range(3, 24) if free[i] not in (*prompt[0].tolist(), *free[:i]))
    for given in (prompt, prompt[:1]):
        plain, cached, session = _both(pipe, given, 24, eos_early_stop=True, eos_token_id=free[where], **at_once)
        assert torch.equal(plain, cached)
    stop = ((6 + where) // 4 + 1) * 4  # the end of its block
    assert (cached[0, : stop - 6] != MASK).all()
    assert (cached[0, stop - 6 :] == MASK).all()
    assert session.report().windows[-1] == stop < 30


def test_rows_computed_are_the_prompt_once_and_then_blocks() -> None:
    # One token a step, no editing: B steps a block. The first step of a block takes the block before along, whose last
    # token was written after its last forward.
    pipe = _pipe(4)
    _, _, session = _both(pipe, _prompt(8), 12, threshold=2.0, editing_threshold=None, num_inference_steps=4)
    report = session.report()
    assert report.rows == (12, 4, 4, 4, 8, 4, 4, 4, 8, 4, 4, 4)
    assert report.windows == (12,) * 4 + (16,) * 4 + (20,) * 4
    assert report.cache_ratio == pytest.approx(1 - 64 / 192)
    assert len(report.seconds) == 12
    assert report.memory == 2 * 3 * 2 * 20 * 8 * 8  # keys and values, layers, heads, slots, width, bytes
    assert "12 forwards, 64 of 192 rows computed (66.7% from the cache)" in str(report)


def test_a_block_that_is_not_written_after_its_last_forward_is_not_computed_again() -> None:
    # With editing on, a block's last forward is the one that changes nothing.
    pipe = _pipe(4)
    _, _, session = _both(pipe, _prompt(8), 12, threshold=0.0, editing_threshold=0.9999, num_inference_steps=2)
    assert session.report().rows == (12, 4, 4, 4, 4, 4)


def test_tokens_written_by_a_callback_are_seen() -> None:
    pipe = _pipe(4)

    def rewrite(pipe: Any, step: int, index: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        block = tensors["block_x"].clone()
        if step % 3 == 1:
            block[:, step % 8] = step  # in the prompt
        return {"block_x": block}

    plain, cached, session = _both(pipe, _prompt(9), 16, callback_on_step_end=rewrite, num_inference_steps=4)
    assert torch.equal(plain, cached)
    assert max(session.report().rows[1:]) > 8
    assert not torch.equal(plain, _generate(pipe, _prompt(9), 16, num_inference_steps=4))


def test_runs_do_not_leak_into_each_other() -> None:
    pipe = _pipe(4)
    plain = [_generate(pipe, _prompt(length), 12) for length in (5, 9)]
    session = Llada2Session(pipe)
    session.attach()

    def fail(pipe: Any, step: int, index: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 2:
            raise KeyboardInterrupt
        return {}

    for length, wanted in ((5, plain[0]), (9, plain[1]), (5, plain[0])):
        assert torch.equal(_generate(pipe, _prompt(length), 12), wanted)
        with pytest.raises(KeyboardInterrupt):
            _generate(pipe, _prompt(9), 12, callback_on_step_end=fail)
    # New weights between two runs are seen, too.
    with torch.no_grad():
        pipe.model.lm_head.weight.neg_()
    cached = _generate(pipe, _prompt(9), 12)
    session.detach()
    assert torch.equal(cached, _generate(pipe, _prompt(9), 12))
    assert not torch.equal(cached, plain[1])


def test_a_forward_that_fails_half_way_leaves_no_half_written_rows() -> None:
    pipe, tokens = _pipe(4), _prompt(12)
    inputs = {"attention_mask": torch.ones_like(tokens), "position_ids": torch.arange(12)[None]}
    wanted = pipe.model(tokens, **inputs).logits[:, -4:]
    session = Llada2Session(pipe)
    session.attach()
    pipe.scheduler.set_timesteps(4, block_length=4)
    pipe.model(tokens, **inputs)

    def break_down(module: Any, args: Any) -> None:
        raise MemoryError

    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % EOS
    hook = pipe.model.model.layers[1].register_forward_pre_hook(break_down)
    with pytest.raises(MemoryError):
        pipe.model(changed, **inputs)  # the slots of the first layer now know the other token
    hook.remove()
    assert (pipe.model(tokens, **inputs).logits[:, -4:] - wanted).abs().max() < 1e-12
    assert session.report().rows == (12, 12, 12)


def test_detaching_leaves_everything_as_it_was() -> None:
    pipe = _pipe(4)
    _generate(pipe, _prompt(5), 8)  # it leaves fields of its own
    before = [_state(owner) for owner in (pipe, pipe.model, pipe.scheduler)]
    plain, _, session = _both(pipe, _prompt(5), 8)
    session.detach()
    assert [_state(owner) for owner in (pipe, pipe.model)] == before[:2]
    assert vars(pipe.scheduler).keys() == before[2].keys()
    assert torch.equal(plain, _generate(pipe, _prompt(5), 8))


def test_direct_calls_of_the_model_are_left_alone() -> None:
    pipe = _pipe(4)
    tokens = _prompt(10)
    wanted = pipe.model(tokens).logits
    session = Llada2Session(pipe)
    session.attach()
    assert torch.equal(pipe.model(tokens).logits, wanted)
    _generate(pipe, _prompt(5), 8)
    assert torch.equal(pipe.model(tokens).logits, wanted)


def test_a_model_that_is_not_block_causal_is_refused_before_the_run() -> None:
    pipe = LLaDA2Pipeline(_model(is_causal=False), BlockRefinementScheduler(block_length=8))
    session = Llada2Session(pipe)
    session.attach()
    with pytest.raises(ValueError, match=r"not block-causal.*block_causal\(pipe\.model, block_length=4\)"):
        _generate(pipe, _prompt(5), 8, block_length=4)
    assert session.report().rows == ()
    session.detach()
    assert _generate(pipe, _prompt(5), 8, block_length=4).shape == (1, 8)


def test_another_block_length_than_the_model_has_is_refused() -> None:
    pipe = _pipe(8)
    session = Llada2Session(pipe)
    session.attach()
    with pytest.raises(ValueError, match="not block-causal"):
        _generate(pipe, _prompt(5), 8, block_length=4)
    with pytest.raises(ValueError, match="with a cache than without"):
        _generate(pipe, _prompt(5), 8, block_length=16)
    assert _generate(pipe, _prompt(5), 8).shape == (1, 8)


def test_a_causal_model_is_refused() -> None:
    pipe = LLaDA2Pipeline(_model(), BlockRefinementScheduler(block_length=4))
    session = Llada2Session(pipe)
    session.attach()
    with pytest.raises(ValueError, match="with a cache than without"):
        _generate(pipe, _prompt(5), 8)


def test_what_cannot_be_attached_is_refused_with_a_reason() -> None:
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=4, block_out_channels=(4,), norm_num_groups=2, **kinds)
    with pytest.raises(TypeError, match="DDPMPipeline is no LLaDA2Pipeline"):
        Llada2Session(DDPMPipeline(unet, DDPMScheduler()))
    with pytest.raises(TypeError, match="Linear cannot use a cache: its forward takes no input_ids"):
        Llada2Session(LLaDA2Pipeline(torch.nn.Linear(2, 3), BlockRefinementScheduler()))
    pipe = _pipe(4)
    session = Llada2Session(pipe)
    session.attach()
    pipe.register_modules(scheduler=BlockRefinementScheduler(block_length=4))
    with pytest.raises(RuntimeError, match="another scheduler now"):
        _generate(pipe, _prompt(5), 8)
    session.detach()
    pipe.model.train()
    session = Llada2Session(pipe)
    session.attach()
    with pytest.raises(ValueError, match="training mode"):
        _generate(pipe, _prompt(5), 8)


def test_the_handle_of_accelerate_pipeline() -> None:
    pipe = _pipe(4)
    plain = _generate(pipe, _prompt(8), 8, threshold=2.0, num_inference_steps=2, editing_threshold=None)
    accelerate_pipeline(pipe, method="block_cache")
    handle = pipe.acceleration
    with pytest.raises(RuntimeError, match="nothing has been decoded"):
        handle.report()
    cached = _generate(pipe, _prompt(8), 8, threshold=2.0, num_inference_steps=2, editing_threshold=None)
    assert torch.equal(plain, cached)
    assert str(handle.plan).splitlines()[1:-1] == [
        "step 0    ############....  12 of 16",
        "step 1    ........####....  4 of 16",
        "step 2    ........########  8 of 16",
        "step 3    ............####  4 of 16",
    ]
    assert handle.report().as_dict()["rows"] == (12, 4, 8, 4)
    handle.remove()
    assert getattr(pipe, "acceleration", None) is None
    assert "set_timesteps" not in vars(pipe.scheduler)
    with pytest.raises(ValueError, match="use method='block_cache', which loses nothing"):
        accelerate_pipeline(pipe, method="dkv")


def test_who_sees_whom() -> None:
    # Blocks of two, four positions, the first one padding, which nobody but itself sees.
    visible = torch.tensor([[0, 1, 1, 1]])
    places = torch.arange(4)[None]
    rows = ["##..", ".#..", ".###", ".###"]
    seen = block_causal_mask(places, places, visible, 2)
    assert ["".join("#" if cell else "." for cell in row) for row in seen[0, 0].tolist()] == rows
    assert torch.equal(block_causal_mask(places[:, 2:], places, visible, 2), seen[:, :, 2:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_later_blocks_do_not_matter_and_own_blocks_do(attention: str) -> None:
    model = _model()
    model.set_attn_implementation(attention)
    tokens = _prompt(12)
    free = model(tokens).logits
    with block_causal(model, 4):
        first = model(tokens).logits
        changed = tokens.clone()
        changed[0, 7] = (tokens[0, 7] + 1) % EOS  # the last one of the second block
        moved = (model(changed).logits - first).abs().amax(-1)[0]
    assert moved[:4].max() == 0
    assert moved[4:].min() > 1e-3
    assert torch.equal(model(tokens).logits, free)


def test_rows_against_slots_are_those_of_the_whole_forward() -> None:
    model, tokens = _model(), _prompt(12, batch=2)
    with block_causal(model, 4):
        whole = model(tokens).logits
        cache = SlotCache(12)
        model(tokens, past_key_values=cache, use_cache=True)
        rows = torch.tensor([[4, 5, 9], [0, 8, 11]])
        cache.place(rows)
        some = model(tokens.gather(1, rows), position_ids=rows, past_key_values=cache, use_cache=True).logits
    assert (some - whole.gather(1, rows[..., None].expand(-1, -1, VOCABULARY))).abs().max() < 1e-12


def test_what_cannot_be_block_causal_is_refused() -> None:
    model = _model()
    with pytest.raises(ValueError, match="block_length must be a whole number"):
        block_causal(model, 0)
    with pytest.raises(TypeError, match="Linear is no model of transformers"):
        block_causal(torch.nn.Linear(2, 2), 4)  # type: ignore[arg-type]
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"flex_attention.*set_attn_implementation"):
        block_causal(model, 4)


def _state(owner: Any) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(owner).items()}


logging.getLogger("diffusers").setLevel(logging.ERROR)
