# SPDX-License-Identifier: Apache-2.0
"""The coefficient of the KL penalty: fixed, or steered to a target; and scores of domains on one scale."""

import pytest
import torch

from ixc_lightning.modules import AdaptiveKL, DomainScale, FixedKL
from ixc_lightning.types import InputError

NAMES = ["reading", "counting"]


def test_a_fixed_coefficient_stays():
    control = FixedKL(0.1)
    control.update(100.0, 50)
    assert control.coef == 0.1


def test_an_adaptive_coefficient_rises_beyond_the_target_and_falls_below_it():
    control = AdaptiveKL(0.1, target=6.0, horizon=100)
    control.update(12.0, 10)
    assert control.coef == pytest.approx(0.1 * 1.02)  # 0.2 · 10/100
    control.update(5.4, 10)
    assert control.coef == pytest.approx(0.1 * 1.02 * 0.99)  # −0.1 · 10/100


@pytest.mark.parametrize(
    "build", [lambda: FixedKL(-1.0), lambda: AdaptiveKL(0.0, 6.0), lambda: AdaptiveKL(0.1, -1.0)]
)
def test_coefficients_that_would_reward_leaving_are_refused(build):
    with pytest.raises(InputError, match=r"kl\.\w+ is"):
        build()


def scaled(scale, scores, domain, valid=None):
    valid = torch.ones(len(scores), dtype=torch.bool) if valid is None else valid
    return scale(scores, torch.tensor(domain), valid, names=NAMES, over_ranks=lambda moments: moments)


def test_each_domain_gets_mean_0_and_deviation_1_of_all_scores_so_far():
    scale = DomainScale()
    first = torch.tensor([1.0, 3.0, 10.0])
    assert scaled(scale, first, [0, 0, 1]).tolist() == pytest.approx([-1, 1, 0])
    both = torch.tensor([1.0, 3.0, 5.0, 7.0])
    expected = ((both - both.mean()) / both.std(correction=0))[2:]
    assert scaled(scale, both[2:], [0, 0]).tolist() == pytest.approx(expected.tolist())


def test_scores_that_do_not_count_leave_the_statistics_alone():
    scale = DomainScale()
    scaled(scale, torch.tensor([1.0, 3.0, torch.nan]), [0, 0, 0], torch.tensor([True, True, False]))
    assert scale.moments["reading"].mean == 2


def test_given_statistics_stay_and_go_on():
    scale = DomainScale({"reading": (1.0, 2.0), "counting": (0.0, 1.0)})
    for _ in range(2):
        assert scaled(scale, torch.tensor([5.0, 5.0]), [0, 1]).tolist() == [2.0, 5.0]


def test_running_statistics_go_on_from_a_checkpoint():
    scale, again = DomainScale(), DomainScale()
    scaled(scale, torch.tensor([1.0, 3.0]), [0, 1])
    again.load_state_dict(scale.state_dict())
    assert again.moments == scale.moments


def test_a_domain_without_statistics_and_a_deviation_of_0_are_named():
    with pytest.raises(InputError, match="no entry for the domain 'counting'"):
        scaled(DomainScale({"reading": (0.0, 1.0)}), torch.tensor([1.0]), [0])
    with pytest.raises(InputError, match="reading has standard deviation 0"):
        DomainScale({"reading": (0.0, 0.0)})
