# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads of the service."""

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.records import said
from tests.serving.service import serving


def _samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_tokens_and_times_are_counted(scorer):
    with serving(scorer) as client:
        body = {"conversation": "how many?", "responses": ["two", "three", "four"]}
        for _ in range(2):
            assert client.post("/rank", json=body).status_code == 200
        assert client.post("/score", json={}).status_code == 422
        assert client.get("/a/path/of/nobody").status_code == 404
        got = _samples(client)
    assert got["ixc_requests_total", "/rank", "200"] == 2
    assert got["ixc_requests_total", "/score", "422"] == 1
    assert got["ixc_requests_total", "404", "other"] == 1
    assert got["ixc_responses_total",] == 6
    assert got["ixc_request_seconds_count", "/rank"] == 2
    assert 0 < got["ixc_request_seconds_sum", "/rank"] < 20
    assert got["ixc_request_seconds_bucket", "+Inf", "/rank"] == 2
    assert got["ixc_queue_length",] == 0
    encoded = scorer.encoder.tokenizer("<|user|>how many?<|end|><|assistant|>three<|end|>")["input_ids"]
    assert got["ixc_tokens_total",] == 2 * 3 * len(encoded)


def test_equal_responses_to_equal_prompts_are_scored_once(client):
    before = _samples(client)["ixc_responses_total",]
    client.post("/score", json={"conversations": [said("two"), said("two"), said("three")]})
    assert _samples(client)["ixc_responses_total",] == before + 2
