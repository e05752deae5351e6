# SPDX-License-Identifier: Apache-2.0
"""What the service answers: the scorer's own numbers, and a reason for everything that it does not score."""

import json
import math
import threading

import httpx
import pytest

from ixc_lightning.serving.app import field_of
from tests.serving.records import clip, picture, said, text_of
from tests.serving.service import serving

SCORE_TOLERANCE = 1e-5  # float32, sums in another order

IMAGE = "data:image/png;base64," + text_of(picture())
QUESTION = [{"role": "user", "content": "how many?"}]


def _close(got, want):
    return all(math.isclose(a, b, abs_tol=SCORE_TOLERANCE) for a, b in zip(got, want, strict=True))


def test_scores_are_those_of_python_for_text_pictures_and_clips(client, scorer):
    conversations = [
        said("a nine", "what is it?", "image"),
        said("two"),
        said("five", "how many?", "image", "image"),
        said("a nine", "what is it?", "image"),
        said("four", "how many?", "video"),
    ]
    images, videos = [[1], [], [1, 2], [1], []], [[], [], [], [], [1]]
    body = {
        "conversations": conversations,
        "images": [[text_of(picture(n)) for n in own] for own in images],
        "videos": [[text_of(clip(n)) for n in own] for own in videos],
    }
    answer = client.post("/score", json=body)
    files = [[[make(n) for n in own] for own in every] for make, every in ((picture, images), (clip, videos))]
    assert answer.status_code == 200, answer.text
    assert _close(answer.json()["scores"], scorer.score(conversations, *files))
    assert _close(answer.json()["normalised_scores"], scorer.score_normalised(conversations, *files))
    assert answer.json()["scores"][0] == answer.json()["scores"][3]
    assert len({round(score, 4) for score in answer.json()["scores"]}) == 4


def test_parts_may_hold_their_own_media(client, scorer):
    turns = said("a nine", "what is it?", "image")
    expected = scorer.score([turns], [[picture()]])
    turns[0]["content"][0]["image"] = IMAGE
    assert _close(client.post("/score", json={"conversations": [turns]}).json()["scores"], expected)


def test_compare_says_what_the_scorer_says(client, scorer):
    body = {"conversation": "what is it?", "a": "a nine", "b": "two two", "images": [IMAGE]}
    answer = client.post("/compare", json=body).json()
    expected = scorer.compare("what is it?", "a nine", "two two", [picture()])
    assert _close([answer["a"], answer["b"], answer["probability"]], [*expected, expected.probability])
    assert answer["preferred"] == expected.preferred


def test_rank_gives_ranks_and_scores_in_the_order_given(client, scorer):
    answers = ["five", "a nine", "two", "five"]
    answer = client.post("/rank", json={"conversation": QUESTION, "responses": answers}).json()
    assert answer["ranks"] == scorer.rank(QUESTION, answers)
    assert _close(answer["scores"], scorer.score_responses(QUESTION, answers))
    assert answer["ranks"][0] == answer["ranks"][3]


def test_what_trainers_post_scores_as_the_conversation_does(client, scorer):
    texts = [f"<|user|><image>what is it?<|end|><|assistant|>{word}<|end|>" for word in ("a nine", "two")]
    expected = scorer.score_responses("what is it?", ["a nine", "two"], [picture()])
    prompts = ["<|user|><image>what is it?<|end|><|assistant|>"] * 2
    images = [[IMAGE], [IMAGE]]
    body = {"query": texts, "prompts": prompts, "labels": ["9", "2"], "images": images}
    answer = client.post("/get_reward", json=body).json()
    assert _close(answer["rewards"], expected)
    assert answer["scores"] == answer["rewards"]
    assert _close(answer["extra_logs"]["normalised_scores"], scorer.normalise(expected))
    for text, score in zip(texts, expected, strict=True):
        body = {"model": "reward", "input": text, "use_activation": False, "images": [IMAGE]}
        assert _close([client.post("/classify", json=body).json()["data"][-1]["probs"][-1]], [score])
        assert _close([client.post("/v1/embeddings", json=body).json()["data"][-1]["embedding"][-1]], [score])
    body = {"model": "reward", "input": texts, "images": images}
    assert _close([one["probs"][0] for one in client.post("/classify", json=body).json()["data"]], expected)


CONVERSATION = {"conversations": [said("two")]}
MALFORMED = {
    "no JSON": (400, b"{", "no JSON"),
    "deep JSON": (400, b"[" * 100_000, "parsing"),
    "a number of many digits": (400, b'{"a": 1' + b"0" * 6000 + b"}", "parsing"),
    "not an object": (422, [], "the body"),
    "nothing": (422, {}, "conversations: Field required"),
    "an unknown field": (422, {**CONVERSATION, "files": []}, "files: Extra inputs"),
    "an unknown role": (
        422,
        {"conversations": [[{"role": "robot", "content": ""}]]},
        r"conversations[0][0].role",
    ),
    "an unknown part": (422, {"conversations": [said("two", "q", "sound")]}, "'sound'"),
    "a part without text": (
        422,
        {"conversations": [[{"role": "user", "content": [{"type": "text"}]}]]},
        "conversations[0][0].content[0].text: Field required",
    ),
    "no answer": (422, {"conversations": [QUESTION]}, "must end with a message of the assistant"),
    "half a character": (
        422,
        b'{"conversations": [[{"role": "user", "content": "\\ud800"}, '
        b'{"role": "assistant", "content": ""}]]}',
        "surrogate",
    ),
    "half a character in a name": (422, b'{"\\ud800": 1}', "unicode"),
    "too many conversations": (422, {"conversations": [said("two")] * 9}, "9 are more than 8"),
    "too long a text": (422, {"conversations": [said("two " * 600)]}, "characters"),
    "too many tokens": (422, {"conversations": [said("ÿ" * 900)]}, "more than max_tokens=512"),
    "no base64": (422, {**CONVERSATION, "images": [["?"]]}, "images[0][0]: is not base64"),
    "no picture": (422, {**CONVERSATION, "images": [[text_of(b"no picture")]]}, "cannot be decoded"),
    "half a picture": (422, {**CONVERSATION, "images": [[text_of(picture()[:900])]]}, "cannot be decoded"),
    "no clip": (422, {**CONVERSATION, "videos": [[text_of(b"no clip")]]}, "cannot be decoded"),
    "too few pictures": (422, {"conversations": [said("two", "q", "image")]}, "there are 0, fewer than"),
    "pictures for another number": (422, {**CONVERSATION, "images": []}, "1 conversations but images for 0"),
    "too many pictures": (422, {**CONVERSATION, "images": [[IMAGE] * 6]}, "more than 5 pictures"),
    "too many pixels": (422, {**CONVERSATION, "images": [[text_of(picture(size=330))]]}, "more pixels"),
    "too many pixels together": (
        422,
        {**CONVERSATION, "images": [[text_of(picture(size=200))] * 3]},
        "more pixels",
    ),
    "too many frames": (
        422,
        {**CONVERSATION, "videos": [[text_of(clip(frames=40, size=64))]]},
        "more pixels",
    ),
    "a URL": (422, {**CONVERSATION, "images": [["http://127.0.0.1/a.png"]]}, "fetches no URLs"),
    "a URL of a file": (422, {**CONVERSATION, "images": [["file:///etc/passwd"]]}, "fetches no URLs"),
    "a path": (
        422,
        {
            "conversations": [
                [
                    {"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]},
                    {"role": "assistant", "content": "two"},
                ]
            ]
        },
        "reads no files",
    ),
    "two sources": (
        422,
        {
            "conversations": [
                [
                    {"role": "user", "content": [{"type": "image", "path": "a.png", "url": "http://a"}]},
                    {"role": "assistant", "content": "two"},
                ]
            ]
        },
        "conversations[0][0].content[0]: has url and path",
    ),
    "too large": (413, b" " * 1_000_001, "more than 1,000,000 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_cannot_be_scored_is_refused_with_a_reason(case, client):
    status, body, reason = MALFORMED[case]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/score", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
    assert reason in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_a_body_that_is_not_called_json_or_is_compressed_is_refused(client):
    body = json.dumps(CONVERSATION).encode()
    assert client.post("/score", content=body).status_code == 415
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = client.post("/score", content=body, headers=headers)
    assert (answer.status_code, "compressed" in answer.json()["error"]) == (415, True)


def test_unknown_paths_and_verbs_have_a_reason_too(client):
    assert (client.get("/nothing").status_code, client.get("/score").status_code) == (404, 405)
    assert client.get("/score").json() == {"error": "Method Not Allowed"}


def test_files_are_read_below_the_folder_of_media_alone(scorer, tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    turns = said("a nine", "what is it?", "image")
    expected = scorer.score([turns], [[picture()]])
    with serving(scorer, media={"folder": folder}) as client:
        turns[0]["content"][0]["path"] = "a.png"
        assert _close(client.post("/score", json={"conversations": [turns]}).json()["scores"], expected)
        for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "b.png", "", "a\0.png"):
            turns[0]["content"][0]["path"] = path
            answer = client.post("/score", json={"conversations": [turns]})
            assert (answer.status_code, "there is no such file" in answer.text) == (422, True)


def test_without_the_token_only_health_is_told(scorer):
    with serving(scorer, token="secret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.post("/score", json=CONVERSATION, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert client.get("/metrics").status_code == 401
        assert client.get("/health/live").status_code == 200
        headers = {"Authorization": "Bearer secret"}
        assert client.post("/score", json=CONVERSATION, headers=headers).status_code == 200


def test_a_fault_of_the_service_is_logged_and_its_trace_stays_here(scorer, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(scorer, "score_encoded", fail)
    with serving(scorer) as client:
        answer = client.post("/score", json=CONVERSATION)
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert "secret" not in answer.text
        assert client.get("/health/live").status_code == 200
    assert "secret detail" in caplog.text


def test_a_server_that_stops_ends_its_threads(scorer):
    before = threading.active_count()
    with serving(scorer) as client:
        url = str(client.base_url)
        assert client.get("/health/ready").json() == {"status": "ok"}
    assert threading.active_count() <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_the_description_names_every_endpoint_with_examples_that_work(client):
    paths = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    for name in ("Score", "Compare", "Rank"):
        (example,) = paths["components"]["schemas"][f"{name}Request"]["examples"]
        answer = client.post(f"/{name.lower()}", json=example)
        assert answer.status_code == 200, answer.text
    for path, verbs in paths["paths"].items():
        for verb in verbs.values():
            assert verb["description"], path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (("body",), "the body"),
        (("body", "images", 0, 1), "images[0][1]"),
        (
            ("body", "conversations", 0, 1, "content", "parts", 2, "text", "text"),
            "conversations[0][1].content[2].text",
        ),
        (("body", "conversation", "parts", 0, "content"), "conversation[0].content"),
    ],
)
def test_a_field_is_named_as_one_would_write_it(place, expected):
    assert field_of(place) == expected
