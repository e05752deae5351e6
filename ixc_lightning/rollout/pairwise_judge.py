# SPDX-License-Identifier: Apache-2.0
"""A language model as the judge of pairs, asked in both orders."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.functional.pairs import Preference, agreed, comparisons
from ixc_lightning.rollout.judge import Contest, Ruling
from ixc_lightning.rollout.judge_client import ChatClient, UnanswerableError
from ixc_lightning.rollout.judge_prompt import CRITERIA, VERSION, comparison_messages, parse_verdict
from ixc_lightning.rollout.judge_replies import Reply
from ixc_lightning.rollout.judgments import Judgments, judgment_key
from ixc_lightning.types import InputError, Rollout

SPENT, FAILED, REFUSAL, UNPARSEABLE = "not judged, the limits are reached", "failed", "refusal", "unparseable"
NO_VERDICT = (SPENT, FAILED, REFUSAL, UNPARSEABLE)
"""Outcomes of one order that leave a comparison without a verdict, by the precedence in which they count."""
FOLDER = "~/.cache/ixc_lightning/judgments"
NOTHING_TO_COMPARE = "no two different responses"
CONTESTS_AHEAD = 2
"""Prompts, for each request that may be under way, whose comparisons are sent before a ruling is awaited."""


class Answered(NamedTuple):
    """What came of asking for one order.

    Attributes:
        key: of the judgment.
        reply: None where the limits allowed no request, or the server took none.
        failed: whether the server took none.
    """

    key: str
    reply: Reply | None
    failed: bool = False

    @property
    def outcome(self) -> str:
        """``a``, ``b`` or ``tie``; or why there is no verdict."""
        if self.reply is None:
            return FAILED if self.failed else SPENT
        if self.reply.refusal:
            return REFUSAL
        return parse_verdict(self.reply.text) or UNPARSEABLE


class PairwiseJudge:
    """Asks a language model which of two responses is better, once in either order.

    As the paper labels general and text-rich prompts (InternLM-XComposer2.5-Reward, §3.1, pairwise evaluation
    prompts; arXiv 2501.12368). Judges favour a place (Zheng et al. 2023, arXiv 2306.05685, §3.3), so that
    only verdicts that name the same response in both orders make a preference; ties, disagreements, refusals
    and replies without a verdict are counted. The answer of an instruction record is compared with the
    samples; without one, samples are compared with each other.

    Args:
        client: asks the model.
        comparisons: most comparisons for a prompt, two requests each.
        criteria: what makes a response better, in words; goes into the prompt.
        cache: folder of judgments; what is in it is not asked again, by whatever run. Servers that call
            different models by one name need different folders.
        max_failures: the run ends once the server took more requests than this for bad ones.

    Raises:
        InputError: a value is out of its range, or the cache cannot be read.
    """

    def __init__(
        self,
        client: ChatClient,
        comparisons: int = 4,
        criteria: str = CRITERIA,
        cache: str = FOLDER,
        max_failures: int = 20,
    ) -> None:
        if comparisons < 1 or max_failures < 0:
            raise InputError(
                f"judge.comparisons is {comparisons} and .max_failures {max_failures}, but must be at least "
                "1 and at least 0"
            )
        self.client = client
        self.comparisons = comparisons
        self.criteria = criteria
        self.cache = Path(cache).expanduser()
        self.max_failures = max_failures
        self.known: Judgments | None = None
        self.counted: set[str] = set()
        self.from_cache = self.failures = 0
        self.pending: dict[str, Future[Answered]] = {}

    def rate(self, texts: Sequence[str], rollout: Rollout) -> list[float | None]:
        """No scores: comparisons decide."""
        return [None] * len(texts)

    @property
    def fingerprint(self) -> str:
        """The same for all, for it rates nothing."""
        return ""

    def decide(self, contests: Iterable[Contest]) -> Iterator[Ruling]:
        """The rulings, in order, while later comparisons are under way.

        Raises:
            InputError: the server refuses the key or the model, does not answer, or refuses too much.
        """
        self.known = Judgments(self.cache)
        self.client.stop.clear()
        workers = self.client.limits.concurrency
        waiting: deque[tuple[Contest, dict[tuple[int, int], list[Future[Answered]]]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        try:
            for contest in contests:
                waiting.append((contest, self._submit(contest, pool)))
                if len(waiting) > CONTESTS_AHEAD * workers:
                    yield self._ruling(*waiting.popleft())
            while waiting:
                yield self._ruling(*waiting.popleft())
        except BaseException:
            self.client.stop.set()  # nobody waits for what is under way
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.known.close()
            self.client.close()

    def summary(self) -> dict[str, Any]:
        """The model, the prompt's version, and what it took up to now."""
        meter = self.client.meter
        return {
            "model": self.client.model,
            "server": self.client.server,
            "prompt": VERSION,
            "criteria": self.criteria,
            "settings": self.client.fields,
            "comparisons_per_prompt": self.comparisons,
            "requests": self.client.requests,
            "retries": self.client.retries,
            "judgments_from_cache": self.from_cache,
            "input_tokens": meter.input_tokens,
            "output_tokens": meter.output_tokens,
            "cost": meter.cost,
        }

    def _submit(
        self, contest: Contest, pool: ThreadPoolExecutor
    ) -> dict[tuple[int, int], list[Future[Answered]]]:
        """Ask for both orders of each comparison, as far as nobody knows the reply."""
        pairs = comparisons(
            contest.responses, reference=contest.reference, count=self.comparisons, seed=contest.seed
        )
        conversation = contest.conversation() if pairs else []
        asked = {}
        for pair in pairs:
            texts = [contest.responses[n] for n in pair]
            orders = (texts, texts[::-1])
            requests = [comparison_messages(conversation, *order, criteria=self.criteria) for order in orders]
            asked[pair] = [self._ask(messages, pool) for messages in requests]
        return asked

    def _ask(self, messages: list[dict[str, Any]], pool: ThreadPoolExecutor) -> Future[Answered]:
        assert self.known is not None
        key = judgment_key(self.client.model, messages, self.client.fields)
        # What is under way first: it is in the cache before it is no longer pending.
        if (future := self.pending.get(key)) is not None:
            return future
        if (reply := self.known.get(key)) is not None:
            done: Future[Answered] = Future()
            done.set_result(Answered(key, reply))
            if key not in self.counted:
                self.counted.add(key)
                self.from_cache += 1
                self.client.meter.add(reply.input_tokens, reply.output_tokens)
            return done
        self.counted.add(key)
        self.pending[key] = pool.submit(self._judge, key, messages)
        return self.pending[key]

    def _judge(self, key: str, messages: list[dict[str, Any]]) -> Answered:
        """One request, in a thread of its own."""
        assert self.known is not None
        try:
            reply = self.client.ask(messages)
        except UnanswerableError as error:
            self.failures += 1
            if self.failures > self.max_failures:
                raise InputError(
                    f"{self.client.server} took {self.failures} requests for bad ones, the last because "
                    f"{error}: look at client.extra, client.max_tokens_field and the size of the pictures, "
                    "or raise judge.max_failures"
                ) from error
            return Answered(key, None, failed=True)
        if reply is not None:
            self.known.put(key, reply)
        return Answered(key, reply)

    def _ruling(self, contest: Contest, asked: dict[tuple[int, int], list[Future[Answered]]]) -> Ruling:
        preferences, evidence = [], {}
        counts: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        for (first, second), futures in asked.items():
            straight, swapped = (future.result() for future in futures)
            for one in (straight, swapped):
                self.pending.pop(one.key, None)
            outcomes = (straight.outcome, swapped.outcome)
            lacking = [reason for reason in NO_VERDICT if reason in outcomes]
            together = lacking[0] if lacking else agreed(*outcomes)  # type: ignore[arg-type]
            counts["comparisons"] += 1
            if together not in ("a", "b"):
                left_out[f"comparisons: {together}"] += 1
                continue
            counts["comparisons agreed"] += 1
            chosen, rejected = (first, second) if together == "a" else (second, first)
            preferences.append(Preference(chosen, rejected, 1.0))
            evidence[chosen, rejected] = {"verdicts": _verdicts(straight, swapped, together)}
        if not asked:
            left_out[NOTHING_TO_COMPARE] += 1
        return Ruling(preferences, evidence, counts, left_out)


def _verdicts(straight: Answered, swapped: Answered, winner: str) -> list[dict[str, Any]]:
    """Both verdicts, as provenance."""
    shown = []
    for answered, chosen_place in ((straight, winner), (swapped, "b" if winner == "a" else "a")):
        assert answered.reply is not None
        shown.append(
            {
                "chosen_stood": chosen_place,
                "verdict": answered.outcome,
                "judge": answered.reply.model,
                "prompt": VERSION,
                "judgment": answered.key,
            }
        )
    return shown
