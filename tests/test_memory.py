"""Queue and bank against the simplest thing that does the same: a deque and a dict."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.memory import Bank, Queue, unit_rows
from tests.cases import random

WRITES = st.lists(st.integers(0, 25), min_size=1, max_size=12)


@settings(max_examples=500, deadline=None)
@given(size=st.integers(1, 12), writes=WRITES)
def test_queue_is_a_deque(size, writes):
    """Any batch size, over the wrap, also larger than the queue: the newest keys stay, in order."""
    queue, model, made = Queue(size, 1, 0), deque(maxlen=size), 0
    for step, n in enumerate(writes):
        numbers = torch.arange(made, made + n)
        queue.write(numbers[:, None].float(), numbers % 7, step)
        model.extend((float(i), i % 7, step) for i in range(made, made + n))
        made += n
        oldest_first = (queue.next + torch.arange(size)) % size
        rows = zip(*(v[oldest_first].tolist() for v in (queue.keys[:, 0], queue.ids, queue.steps)), strict=True)
        assert [row for row in rows if row[2] >= 0] == list(model)
        ids = torch.arange(7)
        hidden = queue.hidden(ids)[:, queue.steps >= 0]
        assert torch.equal(hidden, ids[:, None] == queue.ids[queue.steps >= 0])
        if model:
            assert queue.age(step).item() == pytest.approx(sum(step - s for _, _, s in model) / len(model))
            assert queue.hidden(ids)[:, queue.steps < 0].all()


@pytest.mark.slow
def test_queue_is_a_deque_over_ten_thousand_sequences():
    """The same at length: 10^4 random sequences of batch sizes, the keys' order after each."""
    draw = np.random.default_rng(0)
    wrapped = over = 0
    for sequence in range(10_000):
        size = int(draw.integers(1, 13))
        queue, model, made = Queue(size, 1, 0), deque(maxlen=size), 0
        for step, n in enumerate(draw.integers(0, 18, draw.integers(1, 6)).tolist()):
            numbers = torch.arange(made, made + n)
            queue.write(numbers[:, None].float(), numbers, step)
            model.extend(range(made, made + n))
            made, over = made + n, over + (n > size)
        wrapped += made > size
        order = (queue.next + torch.arange(size)) % size
        kept = [i for i in queue.ids[order].tolist() if i >= 0]
        assert kept == list(model) == [int(k) for k in queue.keys[order, 0].tolist()[size - len(kept) :]], sequence
    assert wrapped > 5000 and over > 5000


def test_queue_starts_with_random_directions_that_stand_in_for_the_first_step_only():
    queue = Queue(8, 16, 3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(8))
    assert (queue.ids == -1).all() and not queue.hidden(torch.tensor([0, 1])).any()
    assert queue.age(5) == 0
    queue.write(queue.keys[:3].clone(), torch.tensor([0, 1, 2]), 0)
    assert queue.hidden(torch.tensor([1])).tolist() == [[False, True, False] + 5 * [True]]


@pytest.mark.parametrize("memory", [Queue(5, 3, 0), Bank(5, 3, 0)], ids=["queue", "bank"])
def test_memory_is_saved_whole(memory):
    """Buffers that `state_dict` leaves out would restart a resumed run on random negatives."""
    memory.write(random(2, 3), torch.tensor([1, 4]), 6, *([0.5] if isinstance(memory, Bank) else []))
    other = type(memory)(5, 3, 1)
    other.load_state_dict(memory.state_dict())
    assert dict(memory.named_buffers()).keys() == memory.state_dict().keys()
    assert all(torch.equal(v, other.get_buffer(k)) for k, v in memory.named_buffers())


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=14), min_size=1, max_size=6),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_bank_is_a_dict(batches, momentum):
    """Ids that are there twice are averaged, then move their row once; the rest stay to the last bit."""
    bank = Bank(10, 3, 0).double()
    rows = {i: bank.rows[i].clone() for i in range(10)}
    last = dict.fromkeys(range(10), -1)
    for step, ids in enumerate(batches):
        values = unit_rows(len(ids), 3, "values", step).double()
        bank.write(values, torch.tensor(ids), step, momentum)
        for i in set(ids):
            mine = torch.stack([v for v, j in zip(values, ids, strict=True) if j == i]).mean(0)
            moved = momentum * rows[i] + (1 - momentum) * mine
            rows[i], last[i] = moved / moved.norm(), step
        for i in range(10):
            if i in ids:
                torch.testing.assert_close(bank.rows[i], rows[i], rtol=1e-12, atol=1e-14)
                rows[i] = bank.rows[i].clone()
            assert torch.equal(bank.rows[i], rows[i])
        assert bank.last_step.tolist() == list(last.values())
        seen = [s for s in last.values() if s >= 0]
        assert bank.age(step).item() == pytest.approx(sum(step - s for s in seen) / len(seen))


def test_order_within_a_batch_does_not_matter_to_the_bank():
    values, ids = unit_rows(6, 3, "v"), torch.tensor([2, 0, 2, 1, 2, 0])
    banks = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        banks.append(Bank(4, 3, 0))
        banks[-1].write(values[order], ids[order], 0, 0.5)
    torch.testing.assert_close(banks[0].rows, banks[1].rows)


def test_memory_starts_from_the_seed_alone():
    assert torch.equal(Bank(5, 3, 4).rows, Bank(5, 3, 4).rows)
    assert not torch.equal(Bank(5, 3, 4).rows, Bank(5, 3, 5).rows)
    assert not torch.equal(Bank(5, 3, 4).rows, Queue(5, 3, 4).keys)
