# SPDX-License-Identifier: Apache-2.0
"""Who says which of several responses to a prompt is better: the interface, and a judge without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from ixc_lightning.functional.pairs import Preference, preferences_by_score
from ixc_lightning.types import InputError, Rollout

Rule: TypeAlias = Callable[[Sequence[str], Rollout], Any]
"""A ``Verifier``. What it returns is left open, for jsonargparse would want a class that builds that."""
NOTHING_KNOWN = "no answer to verify by"
ALL_ALIKE = "all responses score alike"


@dataclass(frozen=True)
class Contest:
    """A prompt with the responses that are to be judged.

    Attributes:
        key: ``shard:key`` of the prompt's record, for messages.
        responses: the texts, none of them empty.
        scores: what ``Judge.rate`` said of each when it was drawn.
        reference: number of the response that came with the record, or None.
        seed: of what the judge leaves to chance.
        conversation: gives the prompt in the form of chat completions, pictures inside.
    """

    key: str
    responses: list[str]
    scores: list[float | None]
    reference: int | None
    seed: str
    conversation: Callable[[], list[dict[str, Any]]]


class Ruling(NamedTuple):
    """What a judge says about one prompt.

    Attributes:
        preferences: between the responses.
        evidence: what a preference rests on, by the numbers of chosen and rejected; may lack some.
        counts: of what was judged, by its outcome.
        left_out: why there is no preference, or fewer than there could be, counted.
    """

    preferences: list[Preference]
    evidence: dict[tuple[int, int], dict[str, Any]]
    counts: Counter[str]
    left_out: Counter[str]


@runtime_checkable
class Judge(Protocol):
    """Says which responses are better. All that it is paid for must survive the end of the process."""

    def rate(self, texts: Sequence[str], rollout: Rollout) -> list[float | None]:
        """A score of each response once it is drawn; None where it has none, or a comparison decides."""
        ...

    def decide(self, contests: Iterable[Contest]) -> Iterator[Ruling]:
        """The ruling on each contest, in their order, on the first rank alone when all is answered."""
        ...

    def summary(self) -> dict[str, Any]:
        """Who judged and how, and what that took up to now, for the report."""
        ...

    @property
    def fingerprint(self) -> str:
        """What differs when ``rate`` would say something else."""
        ...


class VerifierJudge:
    """Prefers what a rule scores higher: right over wrong answers, kept over broken instructions.

    As the paper labels mathematics and instruction following (InternLM-XComposer2.5-Reward, §3.1, verifier
    functions; arXiv 2501.12368). The answer of an instruction record is scored by the same rule.

    Args:
        verifier: scores responses; see ``docs/rollouts.md``.
        min_gap: smallest difference between the scores of a pair.
        needs_answer: whether prompts without an answer are left out; a rule of form needs none.

    Raises:
        InputError: ``min_gap`` is negative.
    """

    def __init__(self, verifier: Rule, min_gap: float = 0.0, needs_answer: bool = True) -> None:
        if not min_gap >= 0:
            raise InputError(f"judge.min_gap is {min_gap}, but must not be negative")
        self.verifier = verifier
        self.min_gap = min_gap
        self.needs_answer = needs_answer

    def rate(self, texts: Sequence[str], rollout: Rollout) -> list[float | None]:
        """The rule's score of each response; None where there is no answer.

        Raises:
            InputError: naming the record, if a score is no number.
        """
        scores = self.verifier(texts, rollout).tolist()
        known = [answer is not None or not self.needs_answer for answer in rollout.answers]
        for score, key in zip(scores, rollout.keys, strict=True):
            if score != score:
                raise InputError(f"{key}: the verifier's score is no number; mend the rule")
        return [score if know else None for score, know in zip(scores, known, strict=True)]

    def decide(self, contests: Iterable[Contest]) -> Iterator[Ruling]:
        """The preferences that the scores express."""
        for contest in contests:
            preferences = preferences_by_score(contest.scores, min_gap=self.min_gap)
            known = [score for score in contest.scores if score is not None]
            left_out: Counter[str] = Counter()
            if not preferences:
                left_out[ALL_ALIKE if known else NOTHING_KNOWN] += 1
            counts = Counter({"verified responses": len(known)})
            yield Ruling(preferences, {}, counts, left_out)

    def summary(self) -> dict[str, Any]:
        """The rule and its settings."""
        settings = {name: _plain(value) for name, value in getattr(self.verifier, "__dict__", {}).items()}
        name = getattr(self.verifier, "__name__", type(self.verifier).__name__)
        return {"verifier": name, "settings": settings, "min_gap": self.min_gap}

    @property
    def fingerprint(self) -> str:
        """Of the rule and its settings."""
        return repr({**self.summary(), "min_gap": None, "needs_answer": self.needs_answer})


def _plain(value: Any) -> Any:
    """A setting as JSON can say it."""
    if isinstance(value, re.Pattern):
        return value.pattern
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
