"""The order of training, by counting: realised repeats must be the planned ones for any groups and batch sizes."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.training.plan import Plan, PlannedSample

SAMPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=12)


def planned(groups_and_repeats):
    return [
        PlannedSample(f"sample-{index:02d}", ((8, 8 + group), ()), repeats)
        for index, (group, repeats) in enumerate(groups_and_repeats)
    ]


@given(chosen=SAMPLES, batch_size=st.integers(1, 5), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_epoch_realises_exactly_the_planned_counts(chosen, batch_size, seed):
    samples = planned(chosen)
    plan = Plan(samples, batch_size, seed)
    group_of = {sample.sample_id: sample.group for sample in samples}
    for epoch in range(3):
        first = epoch * plan.micro_batches_per_epoch
        batches = [plan.micro_batch(first + offset) for offset in range(plan.micro_batches_per_epoch)]
        assert Counter(one for batch in batches for one in batch) == {one.sample_id: one.repeats for one in samples}
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert all(len({group_of[one] for one in batch}) == 1 for batch in batches)
    sizes = Counter(len(batch) for batch in batches)
    if not plan.short_batches():
        assert set(sizes) == {batch_size}


@given(chosen=SAMPLES, position=st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_the_order_is_a_pure_function_of_seed_epoch_and_ids(chosen, position):
    samples = planned(chosen)
    walked = Plan(samples, 2, seed=1)
    for before in range(position):
        walked.micro_batch(before)
    assert walked.micro_batch(position) == Plan(samples[::-1], 2, seed=1).micro_batch(position)


def test_seeds_and_epochs_differ():
    samples = planned([(0, 1)] * 12)
    orders = {
        tuple(one for place in range(3) for one in Plan(samples, 4, seed).micro_batch(3 * epoch + place))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_step_has_the_same_samples_however_it_is_split():
    samples = planned([(0, 2)] * 8)
    whole, split = Plan(samples, 4, seed=5), Plan(samples, 2, seed=5)
    for step in range(10):
        (one,) = whole.step_batches(step, 1)
        assert one == list(chain.from_iterable(split.step_batches(step, 2)))


def test_groups_that_do_not_fill_their_batches_are_named():
    plan = Plan(planned([(0, 1), (0, 1), (0, 1), (1, 2)]), 2, seed=0)
    assert plan.short_batches() == {((8, 8), ()): 3}
    assert sorted(len(plan.micro_batch(place)) for place in range(3)) == [1, 2, 2]


def test_groups_are_mixed_and_not_seen_one_after_the_other():
    plan = Plan(planned([(index % 2, 1) for index in range(40)]), 1, seed=0)
    groups = [int(plan.micro_batch(place)[0][-2:]) % 2 for place in range(40)]
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes > 10
