"""Shuffle the pairs for an epoch, keeping pairs with the same prompt together and balancing the load across ranks."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

LOOK_AHEAD = 16  # number of upcoming prompts to search for one that fits into the rest of an optimizer step


class StepSampler(Sampler[int]):
    """Yield the indices of pairs, step by step, in the order in which accelerate distributes them to the ranks.

    A step takes the next pairs in a random order that depends only on `seed` and `epoch`. With `group_by_prompt`, it
    takes the next prompts with all their pairs; a prompt that does not fit is split, and the rest starts the next step.
    With `balance_ranks`, the pairs (or prompts) of a step are assigned longest first, each to the micro-batch with the
    fewest packed positions so far; without it, to the first micro-batch with room. Every micro-batch has `batch_size`
    pairs. (Transformers' BatchRebalanceSampler gives ranks different numbers of pairs, so taking the mean on each rank
    would weight pairs differently.)

    At the end of an epoch, the first pairs in the order are repeated until every rank has a full micro-batch. With
    `drop_last`, leftover pairs that cannot fill one on every rank are dropped instead. If a step is a single
    micro-batch, the last one may be smaller.

    Args:
        pairs: Dataset from `tokenize_pairs`.
        batch_size: Pairs in a micro-batch on one rank.
        ranks: Number of ranks.
        accumulation: Micro-batches in an optimizer step.
        seed: Seed for the random order.
        group_by_prompt: Keep the pairs of a prompt together; None does so if any prompt has several pairs.
        balance_ranks: Give micro-batches similar loads.
        drop_last: Drop incomplete micro-batches.
    """

    def __init__(
        self,
        pairs: Dataset,
        batch_size: int,
        ranks: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        group_by_prompt: bool | None = None,
        balance_ranks: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.batch_size, self.ranks, self.accumulation = batch_size, ranks, accumulation
        self.seed, self.epoch, self.balance_ranks = seed, 0, balance_ranks
        one_for_all, pairs_left = batch_size * ranks, len(pairs) % (batch_size * ranks)
        self.size = len(pairs)
        if drop_last:
            self.size -= pairs_left
        elif ranks * accumulation > 1 and pairs_left:
            self.size += one_for_all - pairs_left
        prompts = np.unique(pairs["prompt"][:], return_inverse=True)[1]
        by_prompt = prompts.max(initial=0) + 1 < len(pairs) if group_by_prompt is None else group_by_prompt
        self.prompts = prompts if by_prompt else np.arange(len(pairs))
        columns = (np.array(pairs[name][:]) for name in ("prefix_length", "length", "positions"))
        self.prefix, self.longer, self.positions = columns
        self.shorter = self.positions - self.longer + self.prefix

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        if not self.size:
            return
        random = np.random.default_rng((self.seed, self.epoch))
        prompts = random.permutation(len(self.prompts))[self.prompts]
        order = np.resize(np.lexsort((random.permutation(len(prompts)), prompts)), self.size)
        waiting = deque(np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1))
        while waiting:
            step: list[np.ndarray] = []
            room = self.batch_size * self.ranks * self.accumulation
            while room and waiting:
                ahead = islice(waiting, LOOK_AHEAD if step else 1)
                at = next((number for number, pairs in enumerate(ahead) if len(pairs) <= room), 0)
                pairs = waiting[at]
                del waiting[at]
                if len(pairs) > room:
                    waiting.appendleft(pairs[room:])
                step.append(pairs[:room])
                room -= len(step[-1])
            yield from self._deal(step)

    def _deal(self, step: list[np.ndarray]) -> list[int]:
        """Return the pairs of a step, which are grouped by prompt, ordered by micro-step and then by rank."""
        batches: list[list[int]] = [[] for _ in range(-(-sum(map(len, step)) // self.batch_size))]
        loads = [0] * len(batches)
        waiting = deque(sorted(step, key=self._positions, reverse=True))
        while waiting:
            pairs = waiting.popleft()
            rooms = [self.batch_size - len(batch) for batch in batches]
            to = min(range(len(batches)), key=lambda n: (max(len(pairs) - rooms[n], 0), loads[n]))
            pairs, rest = pairs[: rooms[to]], pairs[rooms[to] :]
            batches[to] += pairs.tolist()
            loads[to] += self._positions(pairs)
            if len(rest):
                waiting.appendleft(rest)
        # Give ranks similar loads within a micro-step; alternate the order so that totals balance too.
        by_load = [batches[n] for n in sorted(range(len(batches)), key=loads.__getitem__, reverse=True)]
        steps = [by_load[at : at + self.ranks] for at in range(0, len(by_load), self.ranks)]
        return [pair for m, step in enumerate(steps) for batch in step[:: -1 if m % 2 else 1] for pair in batch]

    def _positions(self, pairs: np.ndarray) -> int:
        """Estimate the positions in a tree of these pairs: answers of the same length count as the same answer."""
        if not self.balance_ranks:
            return 0
        if len(pairs) == 1:
            return int(self.positions[pairs[0]])
        prefix, lengths = int(self.prefix[pairs].min()), {*self.longer[pairs].tolist(), *self.shorter[pairs].tolist()}
        return prefix + sum(lengths) - len(lengths) * prefix
