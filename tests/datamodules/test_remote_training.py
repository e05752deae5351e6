# SPDX-License-Identifier: Apache-2.0
"""Training from an address is training from a disk: the same order, resumed, from a cache of any size."""

import json
import time

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ixc_lightning.datamodules import PreferenceDataModule, remote
from ixc_lightning.datamodules.base import Source
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import InputError
from tests.datamodules.web import CUT, DROPPED, serve
from tests.digits import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes"),
    # From Python 3.12 on, of the test's own server, beside which the loader starts its workers.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
]

SHARDS, PER_SHARD, BATCH = 8, 4, 4
PAIRS = SHARDS * PER_SHARD
PATIENCE_S = 20


def pair(number):
    question = [{"role": "user", "content": f"Which is {number}?"}]
    record = {"id": str(number), "source": "test", "domain": "reading", "messages": question}
    return Sample(f"s{number:03d}", record | {"chosen": f"It is {number}.", "rejected": "None."})


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_shards(map(pair, range(PAIRS)), folder, kind="preference", samples_per_shard=PER_SHARD)
    return folder


@pytest.fixture(scope="module")
def whole(local, tiny_folder, tmp_path_factory):
    """What a run from the disk sees that never stops."""
    module = PreferenceDataModule(str(tiny_folder), train=str(local), batch_size=BATCH, shuffle_shards=2)
    seen, _ = fit(module, tmp_path_factory.mktemp("whole"))
    return seen


@pytest.fixture
def web(local, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    with serve() as web:
        web.put(local, "set")
        yield web


@pytest.fixture
def url(web):
    return f"{web.url}/set"


@pytest.fixture
def data(tiny_folder, tmp_path):
    """A datamodule whose cache is the test's own."""

    def build(train, **options):
        settings = {"batch_size": BATCH, "shuffle_shards": 2, "cache_folder": str(tmp_path / "cache")}
        return PreferenceDataModule(str(tiny_folder), train=train, **settings | options)

    return build


@pytest.fixture
def room(local):
    """Gigabytes that hold three shards with their sidecars, of eight."""
    size = sum(path.stat().st_size for path in local.glob("shard-000000.*"))
    return 3 * size / 1e9


class Recorder(L.LightningModule):
    """Trains one number, and remembers the keys of every batch, without the folder of their shards."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, [key.rpartition("/")[2] for key in batch.keys]))
        return self.number.square()

    def validation_step(self, batch, batch_idx):
        """Lightning wants one where the data could be validated on."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, folder, *, stop=-1, checkpoint=None):
    """What a run of two epochs sees, up to ``stop`` steps, and where its last checkpoint is."""
    module = Recorder()
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(folder, max_steps=stop, max_epochs=2, enable_checkpointing=True, callbacks=[keeper])
    run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.seen, folder / f"step={run.global_step}.ckpt"


def tars(web):
    """How often each tar was asked for."""
    return {name: count for name, count in web.gets.items() if name.endswith(".tar")}


def cached(tmp_path):
    return [path.stat().st_size for path in (tmp_path / "cache").glob("*/[!.]*")]


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_an_address_goes_on_in_the_order_of_one_from_a_disk(
    workers, whole, url, web, data, room, tmp_path
):
    """Stopped inside an epoch, with room for three of eight shards, from a server that fails at first."""
    for number, failures in enumerate([[503, CUT], [DROPPED], [500], [CUT]]):
        web.failures[f"set/shard-{number:06d}.tar"].extend(failures)
    options = {"num_workers": workers, "cache_gb": room}
    before, checkpoint = fit(data(url, **options), tmp_path / "before", stop=3)
    behind, _ = fit(data(url, **options), tmp_path / "behind", checkpoint=checkpoint)
    assert before + behind == whole
    assert len(whole) == 2 * PAIRS // BATCH
    assert sum(tars(web).values()) > 2 * SHARDS  # they left the cache between the epochs
    assert not [name for name in web.gets if name.endswith("/")]  # nothing was listed


def test_a_run_goes_on_where_its_shards_have_moved_to(whole, local, url, data, tmp_path):
    before, checkpoint = fit(data(str(local)), tmp_path / "before", stop=3)
    behind, _ = fit(data(url), tmp_path / "behind", checkpoint=checkpoint)
    assert before + behind == whole


def test_the_cache_keeps_its_size_while_training(url, data, room, tmp_path):
    module = data(url, cache_gb=room)
    module.setup("fit")
    for _ in module.train_dataloader():
        assert sum(cached(tmp_path)) <= room * 1e9


def test_a_manifest_saves_all_other_requests_at_the_start(url, web, data):
    data(url).setup("fit")
    (table,) = (name for name in web.files if name.endswith(".safetensors"))
    assert web.gets == {"set/manifest.json": 1, table: 1}


def test_sources_at_addresses_and_on_a_disk_mix(local, url, data):
    names = [f"{url}/shard-{{000000..000003}}.tar", str(local / "shard-000004.tar")]
    sources = [Source(names), Source(f"{url}/shard-00000[5-7].tar", weight=2.0)]
    module, plain = (
        data(sources),
        data(
            [
                Source([n.replace(url, str(local)) for n in names]),
                Source(str(local / "shard-00000[5-7].tar"), weight=2.0),
            ]
        ),
    )
    keys = []
    for one in (module, plain):
        one.setup("fit")
        keys.append([key.rpartition("/")[2] for batch in one.train_dataloader() for key in batch.keys])
    assert keys[0] == keys[1]
    assert len(keys[0]) == 5 * PER_SHARD + 2 * 3 * PER_SHARD


def test_all_splits_may_lie_at_an_address(url, data):
    module = data(None, val=f"{url}/shard-000000.tar", test=f"{url}/shard-000001.tar", predict=url)
    module.setup("validate")
    counts = [
        sum(len(batch.keys) for batch in loader)
        for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader())
    ]
    assert counts == [PER_SHARD, PER_SHARD, PAIRS]


@pytest.mark.parametrize(("prefetch", "ahead"), [(0, 0), (1, 1), (2, 2), (100, SHARDS - 1)])
def test_the_shards_of_the_next_batches_are_fetched_ahead(prefetch, ahead, url, web, data):
    """A batch is a shard here, so the order of the shards is that of the batches."""
    module = data(url, prefetch=prefetch, shuffle_shards=1)
    module.setup("fit")
    batches = iter(module.train_dataloader())
    places = module.order.records(0, torch.arange(0, PAIRS, PER_SHARD).numpy())
    order = [module.dataset("train").place(int(index))[0].removeprefix(f"{web.url}/") for index in places]
    next(batches)
    wait_until(lambda: len(tars(web)) >= 1 + ahead)
    time.sleep(0.1)  # more would come now
    assert set(tars(web)) == set(order[: 1 + ahead])


def test_each_worker_looks_ahead_at_its_own_batches(url, data, monkeypatch):
    module = data(url, prefetch=2, shuffle_shards=1)
    module.setup("fit")
    loader = module.train_dataloader()
    named = []
    worker = type("Worker", (), {"num_workers": 3})
    monkeypatch.setattr("ixc_lightning.datamodules.batches.get_worker_info", lambda: worker)
    monkeypatch.setattr(module.dataset("train"), "prefetch", lambda indices: named.append(indices.tolist()))
    loader.dataset[BATCH]
    places = torch.cat([torch.arange(first, first + BATCH) for first in (4, 16, 28)]).numpy()
    assert named == [module.order.records(0, places).tolist()]
    loader.dataset[PAIRS - BATCH]  # the next epoch comes behind it
    assert len(named[1]) == 3 * BATCH


def test_a_cache_without_room_for_what_is_mixed_is_refused(url, data, room):
    with pytest.raises(InputError, match=r"4 shards of each .* GB: raise data.cache_gb, or lower data.shuf"):
        data(url, cache_gb=room, shuffle_shards=4).setup("fit")
    data(url, cache_gb=room, shuffle_shards=4).setup("test")  # one shard after the other


def _spoil(web):
    """Change one byte in the text of a tar, so that only the checksum tells."""
    name = "set/shard-000001.tar"
    assert b"Which is 5?" in web.files[name]
    web.files[name] = web.files[name].replace(b"Which is 5?", b"Which is 6?")
    return name


def _lose(web):
    name = "set/shard-000001.tar"
    del web.files[name]
    return name


BAD_SHARDS = [(_spoil, "its SHA-256 is"), (_lose, "no such file; check the address")]


@pytest.mark.parametrize(("harm", "message"), BAD_SHARDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_shard_is_named_by_its_address(workers, harm, message, url, web, data):
    name = harm(web)
    module = data(url, num_workers=workers)
    module.setup("fit")
    with pytest.raises(InputError, match=f"{web.url}/{name}: {message}"):
        list(module.train_dataloader())


@pytest.mark.parametrize(("harm", "message"), BAD_SHARDS)
def test_a_bad_shard_is_fetched_once_and_each_of_its_samples_is_listed(
    harm, message, url, web, data, tmp_path
):
    name = harm(web)
    module = data(url, on_bad_sample="quarantine", max_bad_fraction=0.5, prefetch=0)
    recorder = Recorder()
    trainer(tmp_path, max_steps=-1, max_epochs=1).fit(recorder, module)
    assert web.gets[name] == 1
    (listing,) = tmp_path.glob("**/bad-samples-00000.jsonl")
    listed = [json.loads(line) for line in listing.read_text().splitlines()]
    assert sorted(bad["key"] for bad in listed) == [f"s{n:03d}" for n in range(4, 8)]
    for bad in listed:
        assert bad["shard"] == f"{web.url}/{name}"
        assert bad["reason"].startswith(f"{web.url}/{name}: {message}")
    assert sum(len(keys) for _, keys in recorder.seen) == PAIRS - PER_SHARD


def test_a_server_that_fails_for_good_ends_the_run_also_where_bad_samples_do_not(url, web, data):
    web.failures["set/shard-000001.tar"].extend([503] * 99)
    module = data(url, on_bad_sample="quarantine", prefetch=0)
    module.setup("fit")
    with pytest.raises(InputError, match=r"shard-000001.tar: could not be read in 5 attempts"):
        list(module.train_dataloader())


def test_nobody_reads_a_signature_in_a_key_or_a_list(web, data, tmp_path):
    for name in [*web.files]:
        web.files[f"{name}?sig=secret"] = web.files.pop(name)
    name = _lose_signed(web)
    module = data(f"{web.url}/set?sig=secret", on_bad_sample="quarantine", max_bad_fraction=0.5)
    module.setup("fit")
    batches = list(module.train_dataloader())
    said = repr([(batch.keys, batch.bad) for batch in batches])
    assert f"{web.url}/set/{name}?…: no such file" in said
    assert "secret" not in said
    assert module.example("train", batches[0].keys[0]).prompt.startswith("Which is")


def _lose_signed(web):
    del web.files["set/shard-000001.tar?sig=secret"]
    return "shard-000001.tar"


@pytest.mark.parametrize("setting", [{"cache_gb": 0.0}, {"prefetch": -1}])
def test_settings_out_of_range_are_named(setting, url, data):
    with pytest.raises(InputError, match=r"must be positive|is a number of batches"):
        data(url, **setting).setup("fit")
