# SPDX-License-Identifier: Apache-2.0
"""What waits for the model: in order, in batches of a budget, and never more than there is room for."""

import threading

import pytest
import torch

from ixc_lightning.datamodules.candidates import EncodedCandidates
from ixc_lightning.datamodules.processing import Encoded
from ixc_lightning.serving.waiting import TokenQueue, Waiting
from tests.serving.records import CANDIDATES

LONG = 5.0  # seconds within which a thread that may go on does so


def _waiting(prompt, *responses, number=0):
    ids = [torch.zeros(length, dtype=torch.long) for length in responses]
    encoded = Encoded(torch.zeros(prompt, dtype=torch.long), {}, {}, ids)
    return Waiting(EncodedCandidates(number, CANDIDATES, encoded), None, number)


def _numbers(batch):
    return [one.number for one in batch]


def test_tokens_count_every_response_with_its_prompt_padded_to_the_longest():
    entry = _waiting(10, 2, 5, 1)
    assert (entry.rows, entry.length, entry.tokens) == (3, 15, 45)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (48, [[0, 1, 2, 3]]),  # 4 rows of 12
        (47, [[0, 1, 2], [3]]),
        (35, [[0, 1], [2, 3]]),  # 2 rows of 10, since 3 of 12 are more; then 2 of 12
        (5, [[0], [1], [2], [3]]),  # what does not fit goes alone
    ],
)
def test_batches_are_the_first_that_fit_once_padded(budget, expected):
    entries = [_waiting(8, 2, number=0), _waiting(4, 2, number=1), _waiting(9, 3, number=2)]
    entries.append(_waiting(3, 1, number=3))
    queue = TokenQueue(1000)
    for entry in entries:
        queue.put(entry)
    queue.close()
    batches = []
    while batch := queue.take(budget):
        batches.append(_numbers(batch))
    assert batches == expected


def test_an_entry_waits_until_there_is_room_and_a_large_one_until_it_is_alone():
    queue = TokenQueue(20)
    queue.put(_waiting(8, 2, number=0))
    done = threading.Event()
    thread = threading.Thread(target=lambda: (queue.put(_waiting(50, 2, number=1)), done.set()), daemon=True)
    thread.start()
    assert not done.wait(0.1)
    assert _numbers(queue.take(1000)) == [0]
    assert done.wait(LONG)
    assert _numbers(queue.take(1000)) == [1]
    thread.join()


def test_taking_waits_for_the_first_and_ends_when_nothing_more_comes():
    queue, taken = TokenQueue(20), []
    thread = threading.Thread(target=lambda: taken.extend([queue.take(9), queue.take(9)]), daemon=True)
    thread.start()
    queue.put(_waiting(3, 1, number=7))
    while not taken and thread.is_alive():
        queue.close()
        thread.join(LONG)
    assert [_numbers(batch) for batch in taken] == [[7], []]
