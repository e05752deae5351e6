# SPDX-License-Identifier: Apache-2.0
"""A judgment is there for good once it was given, whoever gave it and however the process ended."""

import pytest

from ixc_lightning.rollout.judge_replies import Reply
from ixc_lightning.rollout.judgments import Judgments, judgment_key
from ixc_lightning.types import InputError

REPLY = Reply("Verdict: A \ud83d é", "", "stop", "m", 5, 2)
OTHER = Reply("", "no", "content_filter", "m", 5, 0)


def _stored(folder, **replies):
    judgments = Judgments(folder)
    for key, reply in replies.items():
        judgments.put(key, reply)
    return judgments


def test_every_run_reads_what_all_runs_wrote(tmp_path):
    first, second = _stored(tmp_path, a=REPLY), _stored(tmp_path, b=OTHER)  # at the same time
    first.put("c", OTHER)
    third = Judgments(tmp_path)
    assert third.replies == {"a": REPLY, "b": OTHER, "c": OTHER}
    assert third.get("d") is None
    for one in (first, second, third):
        one.close()


def test_a_line_that_was_cut_off_is_none_and_stands_in_nobody_s_way(tmp_path):
    _stored(tmp_path, a=REPLY, b=OTHER).close()
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-5])
    again = _stored(tmp_path, b=OTHER)
    again.close()
    assert Judgments(tmp_path).replies == {"a": REPLY, "b": OTHER}


@pytest.mark.parametrize("line", ["{}", "[]", "no", '{"key": "a", "said": "A"}'])
def test_a_line_that_is_no_judgment_is_named(tmp_path, line):
    _stored(tmp_path, a=REPLY).close()
    with next(tmp_path.iterdir()).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"jsonl, line 2: is no judgment .*judged again"):
        Judgments(tmp_path)


def test_nothing_is_written_where_nothing_is_judged(tmp_path):
    Judgments(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


def test_the_key_changes_with_all_that_is_asked():
    def key(model="m", text="t", url="data:image/png;base64,AA", **fields):
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
        return judgment_key(model, [{"role": "user", "content": content}], fields)

    assert key() == key()
    others = [key(model="n"), key(text="u"), key(url="data:image/png;base64,AB"), key(temperature=0.0)]
    assert len({key(), *others}) == 5
