"""The order of the pairs of an epoch: at random, pairs of one prompt together, every rank with as much to compute."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

LOOK_AHEAD = 16  # prompts of which one may go first because it fills an optimizer step to its end


class StepSampler(Sampler[int]):
    """Optimizer step by optimizer step, numbers of pairs in the order in which accelerate deals batches to the ranks.

    A step takes the next pairs of a random order, which is a function of `seed` and `epoch`. With `group_by_prompt` it
    takes the next prompts with all their pairs; a prompt that does not fit is cut, and its rest begins the next step.
    With `balance_ranks` the pairs of the step, or its prompts, are dealt out longest first, each to the micro-batch
    with the fewest packed positions so far; without, to the first one. Every micro-batch has `batch_size` pairs, and a
    prompt that fits into none is cut. (Transformers' BatchRebalanceSampler gives ranks unequal numbers of pairs, so
    that a mean over a rank's pairs would count some more than others.)

    At the end of an epoch the first pairs of its order come again until every rank has a whole micro-batch, or, with
    `drop_last`, what does not fill one for every rank is left out; only where a step is a single micro-batch, the last
    may be smaller. `pairs` has the columns of `tokenize_pairs`.
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
        """The pairs of a step, given by prompt, micro-step by micro-step and in each rank by rank."""
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
        # Like beside like, for ranks that wait in every micro-step; every other time the other way, for their sums.
        like = [batches[n] for n in sorted(range(len(batches)), key=loads.__getitem__, reverse=True)]
        steps = [like[at : at + self.ranks] for at in range(0, len(like), self.ranks)]
        return [pair for m, step in enumerate(steps) for batch in step[:: -1 if m % 2 else 1] for pair in batch]

    def _positions(self, pairs: np.ndarray) -> int:
        """Of one tree; two answers of one length are taken for one answer."""
        if not self.balance_ranks:
            return 0
        if len(pairs) == 1:
            return int(self.positions[pairs[0]])
        prefix, lengths = int(self.prefix[pairs].min()), {*self.longer[pairs].tolist(), *self.shorter[pairs].tolist()}
        return prefix + sum(lengths) - len(lengths) * prefix
