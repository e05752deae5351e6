# SPDX-License-Identifier: Apache-2.0
"""The command line, Python and HTTP give one score to the same responses, for every kind of media."""

import json
import subprocess
import sys

import pytest

from tests.digits import FRAMES
from tests.serving.records import clip, picture, text_of

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
SECONDS = 300
ASKED = {  # question to its pictures and clips
    "what is it?": ([], []),
    "what digit is it?": ([1], []),
    "which is larger?": ([1, 2], []),
    "how many?": ([], [3]),
}
ANSWERS = ["a nine", "it is two", "five 5"]


@pytest.mark.slow
def test_command_line_python_and_http_give_the_same_scores(reward_folder, scorer, client, tmp_path):
    media, rows = {}, []
    for question, (pictures, clips) in ASKED.items():
        files = {
            "images": {f"{n}.png": picture(n) for n in pictures},
            "videos": {f"{n}.mp4": clip(n) for n in clips},
        }
        media[question] = {kind: list(named.values()) for kind, named in files.items()}
        for name, data in {**files["images"], **files["videos"]}.items():
            (tmp_path / name).write_bytes(data)
        rows.append({"messages": question, "responses": ANSWERS, **{k: list(v) for k, v in files.items()}})
    lines = tmp_path / "responses.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))

    command = [
        *(sys.executable, "-m", "ixc_lightning", "predict", "--config", "recipes/score.yaml"),
        *("--model.model.source", str(reward_folder), "--data.predict", str(lines)),
        *("--data.video_frames", str(FRAMES), "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    table = [json.loads(line) for line in (tmp_path / "out/scores/scores.jsonl").read_text().splitlines()]
    by_command = [row["score"] for row in table]

    by_python = [
        score
        for question, files in media.items()
        for score in scorer.score_responses(question, ANSWERS, **files)
    ]
    by_http = []
    for question, files in media.items():
        encoded = {kind: [[text_of(data) for data in every]] for kind, every in files.items()}
        for text in ANSWERS:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            answer = client.post("/score", json={"conversations": [turns], **encoded})
            assert answer.status_code == 200, answer.text
            by_http += answer.json()["scores"]

    assert len({round(score, 4) for score in by_python}) == len(ASKED) * len(ANSWERS)
    assert by_python == pytest.approx(by_command, abs=SCORE_TOLERANCE)
    assert by_http == pytest.approx(by_command, abs=SCORE_TOLERANCE)
