"""One run over a batch of prompts: decoders, engine, attention and report put together."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray

from diffaccel.dlm.adapters import Denoiser
from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.engine import Engine
from diffaccel.dlm.report import TextReport
from diffaccel.dlm.row_table import RowTable
from diffaccel.dlm.ssd import Speculation

Sequences = list[NDArray[np.int64]]


class Generation:
    """A batch of prompts being decoded.

    Args:
        denoiser: the network.
        how: the run decodes.
        prompts: tokens (P,) of each.
        seeds: of what each sequence draws.
        method: the method that made `how`, for the report.

    Raises:
        ValueError: lengths or steps that do not fit each other, or a method that this model does not allow. Nothing
            has been computed then.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        how: Decoding,
        prompts: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        method: str | None = None,
    ) -> None:
        self.denoiser, self.how, self.prompts, self.method = denoiser, how, prompts, method
        lengths = [len(prompt) for prompt in prompts]
        self.courses = [how.course(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        self.logs = [Speculation() for _ in prompts]
        if how.policy is not None:
            denoiser.check_rows_can_be_cached()
        self.sparse = (
            how.sparse.run(how.steps, lengths * (2 if how.scale else 1), how.generated) if how.sparse else None
        )
        self.engine = Engine(
            denoiser,
            how.sampler,
            lengths,
            how.generated,
            how.conventions.mask_token_id,
            [torch.Generator().manual_seed(seed) for seed in seeds],
            how.lanes,
            how.policy is not None,
            how.scale,
            self.sparse,
        )
        self.sequences: Sequences = [course.start.tokens for course in self.courses]
        self.seconds = 0.0

    def run(self) -> Generator[Sequences]:
        """Decode; yields the sequences before each forward, and when decoded. Close it to end it before that.

        Raises:
            RuntimeError: it has run already.
        """
        if self.engine.counts.forwards:
            raise RuntimeError("a generation runs once: make another")
        decoders = [self.how.decoder(course, log) for course, log in zip(self.courses, self.logs, strict=True)]
        with ExitStack() as attached:
            model = self.denoiser.model
            if self.how.conventions.block_causal is not None:
                from diffaccel.dlm.block_causal import block_causal

                attached.enter_context(block_causal(model, self.how.conventions.block_causal))
            if self.sparse is not None:
                from diffaccel.dlm.sparse_attention import sparse

                attached.enter_context(sparse(model, self.sparse))
            rounds, start = self.engine.run(decoders), time.perf_counter()
            for sequences in rounds:
                self.seconds += time.perf_counter() - start
                self.sequences = sequences
                yield sequences
                start = time.perf_counter()
            self.seconds += time.perf_counter() - start

    def report(self) -> TextReport:
        """What it took so far."""
        counts, cache = self.engine.counts, self.engine.cache
        table = RowTable(self.engine.lengths[0])
        for rows in counts.first:
            table.add(rows)
        drafted = self.how.draft is not None
        return TextReport(
            network=type(self.denoiser.model).__name__,
            method=self.method,
            sequences=len(self.prompts),
            steps=self.how.steps,
            forwards=counts.forwards,
            rows=counts.rows,
            whole=counts.whole,
            tokens=sum(course.written(one) for course, one in zip(self.courses, self.sequences, strict=True)),
            seconds=self.seconds,
            cache=0 if cache is None else cache.nbytes,
            table=table,
            accepted=[count for log in self.logs for count in log.accepted],
            drafted=[count for log in self.logs for count in log.drafted],
            margin=min(log.margin for log in self.logs) if drafted else None,
            density=None if self.sparse is None else self.sparse.density,
        )
