"""Search against a brute-force loop in float64, on one device and eight."""

import threading
import time

import jax
import numpy as np
import pytest

from jaxllm import parallel, targets
from jaxllm.errors import UserError
from jaxllm.retrieve import Neighbours, VectorStore, load_index, recall, search, search_on_disk, search_shards
from jaxllm.retrieve.search import _block_least, _sorted_least, merge, search_program
from jaxllm.retrieve.store import to_int8

N, D, K = 1100, 24, 7


def brute(rows, queries, k):
    distances = ((rows.astype(np.float64)[None] - queries.astype(np.float64)[:, None]) ** 2).sum(-1)
    order = np.lexsort((np.broadcast_to(np.arange(len(rows)), distances.shape), distances), axis=1)[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    rows, queries = (draw.normal(size=(n, D)).astype(np.float32) for n in (N, 5))
    rows[900:904] = rows[3]  # exact copies: ties go by id
    rows[500] = rows[3] + 1e-4 * draw.normal(size=D)  # near duplicates, which the product cannot order
    rows[501] = rows[3] + 1e-5 * draw.normal(size=D)
    queries[0] = rows[3]
    queries[1:3] = 1000 + 1e-2 * draw.normal(size=(2, D))  # far from zero: the product loses all digits
    rows[600:640] = 1000 + 1e-2 * draw.normal(size=(40, D))
    return rows, queries


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=4))


def test_neighbours_are_those_of_a_loop_in_float64(data):
    rows, queries = data
    found = search(load_index(rows), queries, K)
    distances, ids = brute(rows, queries, K)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5)
    assert found.certain.all()
    assert found.ids[0].tolist() == [3, 900, 901, 902, 903, 501, 500]


def test_eight_devices_give_what_one_does(data, mesh):
    rows, queries = data
    one, index = search(load_index(rows), queries, K), load_index(rows, mesh)
    several = search(index, queries, K)
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)
    assert {shard.data.shape for shard in index.rows_ND.addressable_shards} == {(256, D)}


def test_more_neighbours_than_a_device_has_rows(data, mesh):
    rows, queries = data
    found = search(load_index(rows, mesh), queries, 300)
    np.testing.assert_array_equal(found.ids[3:], brute(rows, queries, 300)[1][3:])
    assert np.isfinite(found.distances).all() and found.ids.max() < N


def test_a_store_is_searched_by_parts_as_in_whole(data):
    rows, queries = data
    for a, b in zip(search(load_index(rows), queries, K), search_on_disk(rows, queries, K, block_rows=550),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_thousands_of_copies_are_not_called_certain():
    rows = np.ones((4096, D), np.float32)
    found = search(load_index(rows), 1.5 * rows[:1], 3)
    assert not found.certain.any() and np.allclose(found.distances, 0.25 * D)


@pytest.mark.parametrize("narrow", ["float16", "int8"])
def test_narrow_stores_lose_little_and_give_the_distances_of_what_they_hold(data, narrow, tmp_path):
    rows, queries = data[0], np.random.default_rng(4).normal(size=(32, D)).astype(np.float32)
    stored, scales = to_int8(rows) if narrow == "int8" else (rows.astype(np.float16), None)
    store = VectorStore(tmp_path, stored, scales, np.arange(N), "", N)
    found = search(load_index(store), queries, K)
    held = stored.astype(np.float32) * (1 if scales is None else scales[:, None])
    np.testing.assert_allclose(found.distances, brute(held, queries, K)[0], rtol=1e-4)
    kept = recall(found.ids, brute(rows, queries, K)[1])
    assert (0.85 if narrow == "int8" else 0.98) < kept <= 1


def test_least_of_blocks_are_the_least_in_the_same_order():
    draw = np.random.default_rng(2)
    values = jax.numpy.asarray(draw.integers(0, 40, (3, 1024)).astype(np.float32))  # many ties
    for a, b in zip(_block_least(values, 5), _sorted_least(values, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def part_of(rows, start, stop, index=None):
    index = load_index(rows[start:stop])

    def ask(queries, k):
        found = search(index, queries, min(k, stop - start))
        return found._replace(ids=found.ids + start)

    return ask


def test_shards_merge_to_the_whole_and_a_dead_or_slow_one_is_named(data):
    rows, queries = data
    whole = search(load_index(rows), queries, K)
    shards = {"first": part_of(rows, 0, 550), "last": part_of(rows, 550, N)}
    found = search_shards(shards, queries, K)
    np.testing.assert_array_equal(found.neighbours.ids, whole.ids)
    assert not found.missing and set(found.seconds) == {"first", "last"}

    def dead(queries, k):
        raise ConnectionError("connection refused")

    broken = shards | {"dead": dead, "slow": lambda queries, k: time.sleep(0.8)}
    with pytest.raises(UserError, match=r"2 of 4 shards.*'dead' \(Conn.*'slow' \(no answer within 0.2"):
        search_shards(broken, queries, K, most_seconds=0.2)
    found = search_shards(broken, queries, K, most_seconds=0.2, may_miss=2)
    assert set(found.missing) == {"dead", "slow"}
    np.testing.assert_array_equal(found.neighbours.ids, whole.ids)
    with pytest.raises(UserError, match="no shards"):
        search_shards({}, queries, K)


def test_a_process_ends_while_a_shard_hangs(data):
    """Python waits at its end for every thread that is no daemon, so a hung one may not be of those."""
    rows, queries = data
    asked, let_go = [], threading.Event()

    def hung(queries, k):
        asked.append(threading.current_thread())
        let_go.wait(30)

    try:
        shards = {"whole": part_of(rows, 0, N), "hung": hung}
        assert set(search_shards(shards, queries, K, most_seconds=0.2, may_miss=1).missing) == {"hung"}
        assert asked[0].is_alive() and asked[0].daemon
    finally:
        let_go.set()


def test_merge_orders_ties_by_id():
    parts = [Neighbours(np.array([[1.0]]), np.array([[i]]), np.array([True])) for i in (9, 2)]
    assert merge(parts, 2).ids.tolist() == [[2, 9]]


def test_no_queries_find_nothing(data):
    rows, none = data[0], np.zeros((0, D), np.float32)
    index = load_index(rows)
    in_shards = search_shards({"all": lambda *asked: search(index, *asked)}, none, K).neighbours
    for found in (search(index, none, K), search_on_disk(rows, none, K, block_rows=550), in_shards):
        assert (found.distances.shape, found.ids.shape, found.certain.shape) == ((0, K), (0, K), (0,))
        assert [x.dtype for x in found] == [x.dtype for x in search(index, rows[:1], K)]


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda index: search(index, np.zeros((1, D + 1)), 3), ["width 24", "embed the queries"]),
        (lambda index: search(index, np.zeros((1, D)), N + 1), ["k is 1101", "1100 rows"]),
        (lambda index: search(index, np.zeros((1, D)), 0), ["k is 0"]),
        (lambda index: load_index(np.zeros((0, D))), ["store is empty"]),
        (lambda index: load_index(np.zeros(D)), ["[N, D]"]),
    ],
)
def test_bad_input_is_told_in_a_sentence(data, call, told):
    with pytest.raises(UserError) as error:
        call(load_index(data[0]))
    assert all(part in str(error.value) for part in told) and "\n" not in str(error.value)


@pytest.mark.targets
@pytest.mark.parametrize("batch", [1, 32])
def test_the_pile_fits_a_pod_slice_and_a_query_takes_little_more_than_reading_it(batch):
    """210 M vectors of 1024 in float32 on v5e-64: 12.5 GiB a device, read once for a batch of queries."""
    mesh = targets.mesh(parallel.MeshConfig(data=1, fsdp=64), "v5e-64")
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = -(-210_000_000 // (64 * 128)) * 64 * 128
    shape = lambda size, where: jax.ShapeDtypeStruct(size, "float32", sharding=where)
    args = shape((rows, 1024), split), None, shape((rows,), split), shape((batch, 1024), whole)
    program = jax.jit(lambda *args: search_program(*args, mesh=mesh, k=50, candidates=100))
    forecast = targets.compile(program, args, "v5e-64")
    print(forecast)
    assert forecast.fits and forecast.breakdown["arguments"] < 12.6 * 2**30
    floor = rows / 64 * 1024 * 4 / forecast.target.hbm_bandwidth  # 16.6 ms
    assert forecast.compiler_seconds < 3 * floor
    if batch == 1:  # the account of bytes does not see those that a product with many queries reads
        assert floor <= forecast.memory_seconds < 1.1 * floor
