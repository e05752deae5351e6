# SPDX-License-Identifier: Apache-2.0
"""Shards in a store that speaks S3, on this machine."""

from dataclasses import replace

import pytest

from ixc_lightning.datamodules import remote
from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.patterns import expand_shards
from ixc_lightning.datamodules.shard_writer import write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.datamodules.test_remote_training import cached, data, fit, local, room, whole  # noqa: F401 (fixtures)
from tests.datamodules.test_shards import answers, sample

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes"),
    # From Python 3.12 on, of the test's own server, beside which the loader starts its workers.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
]

BUCKET = "shards"


@pytest.fixture(scope="module")
def endpoint():
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    host, port = thread.get_host_and_port()
    yield f"http://{host}:{port}"
    thread.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path, local):  # noqa: F811
    """A bucket with a folder of three shards, as the environment of a user would name it."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    write_shards(
        (sample(n, images=1) for n in range(6)), tmp_path / "set", kind="prompt", samples_per_shard=2
    )
    for name, folder in {"set": tmp_path / "set", "pairs": local}.items():
        for path in folder.iterdir():
            client.upload_file(str(path), BUCKET, f"{name}/{path.name}")
    client.upload_file(str(tmp_path / "set/shard-000000.tar"), BUCKET, "bare/shard-000000.tar")
    yield tmp_path / "set"
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "pattern", ["set", "set/", "set/*.tar", "set/shard-{000000..000002}.tar", "set/shard-00000?.tar"]
)
def test_a_folder_or_pattern_is_listed(pattern, bucket):
    expected = [f"s3://{BUCKET}/set/shard-{number:06d}.tar" for number in range(3)]
    assert expand_shards(f"s3://{BUCKET}/{pattern}") == [expected]


def test_records_come_back_in_order_with_their_media(bucket, tmp_path):
    dataset = ShardDataset(f"s3://{BUCKET}/set", kind="prompt", cache=ShardCache(tmp_path / "cache"))
    assert answers(dataset) == list(range(6))
    assert dataset[5] == replace(ShardDataset(bucket, kind="prompt")[5], shard=dataset.place(5)[0])
    assert dataset[5].media


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_a_bucket_goes_on_in_the_order_of_one_from_a_disk(
    workers,
    bucket,
    whole,  # noqa: F811
    data,  # noqa: F811
    room,  # noqa: F811
    tmp_path,
):
    options = {"num_workers": workers, "cache_gb": room}
    before, checkpoint = fit(data(f"s3://{BUCKET}/pairs", **options), tmp_path / "before", stop=3)
    behind, _ = fit(data(f"s3://{BUCKET}/pairs", **options), tmp_path / "behind", checkpoint=checkpoint)
    assert before + behind == whole
    assert cached(tmp_path)


def test_a_checksum_that_differs_is_named(bucket, tmp_path):
    url = f"s3://{BUCKET}/set/shard-000000.tar"
    with pytest.raises(InputError, match=f"{url}: its SHA-256 is"):
        ShardCache(tmp_path / "cache").fetch(url, "0" * 64)


def test_a_folder_without_manifest_and_sidecar_is_read_too(bucket, tmp_path):
    dataset = ShardDataset(f"s3://{BUCKET}/bare", kind="prompt", cache=ShardCache(tmp_path / "cache"))
    assert answers(dataset) == [0, 1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"s3://{BUCKET}/set/shard-000009.tar", "no such file"),
        ("s3://nosuchbucket/set/shard-000000.tar", "no such file"),
    ],
)
def test_what_is_not_there_is_named(address, message, bucket, tmp_path):
    with pytest.raises(InputError, match=f"{address}: {message}"):
        ShardCache(tmp_path / "cache").fetch(address)


def test_an_empty_folder_is_named(bucket):
    with pytest.raises(InputError, match=f"s3://{BUCKET}/nothing/: no such file"):
        expand_shards(f"s3://{BUCKET}/nothing")


def test_missing_credentials_say_how_to_give_them(bucket, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"no access \(.*\); set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        ShardCache(tmp_path / "cache", attempts=1).fetch(f"s3://{BUCKET}/set/shard-000000.tar")
