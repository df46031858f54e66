"""Exact nearest neighbours as one jitted program, on one device or a mesh.

|x|^2 - 2 x.q + |q|^2 is one matrix product, and loses the digits of near duplicates. So it only picks
candidates, more than are wanted, by the least that a distance can be, rounding considered; differences taken
directly decide between them, and ties go to the lower id. An answer is certain where the last neighbour is no
farther than the last candidate can be: no row left out is nearer.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.errors import UserError
from jaxllm.retrieve.store import VectorStore

_BLOCK = 128  # rows whose least distance stands for them where sorting is slow; a device has a multiple
_CONVERTED = 8192  # rows of a narrow type that are made float32 at a time
_WIDENINGS = 4  # times that candidates are doubled for queries that are not certain
_QUERIES = 256  # that one call of the program takes at most


class Neighbours(NamedTuple):
    """The k nearest rows of each query, nearest first."""

    distances: np.ndarray  # float32 [B, k], squared
    ids: np.ndarray  # int64 [B, k], rows of the store
    certain: np.ndarray  # bool [B]; False: rounding might hide a nearer row, as among thousands of copies


@dataclass(frozen=True, eq=False)
class Index:
    """Vectors on devices. Rows past `count` are padding."""

    rows_ND: jax.Array  # float32, float16 or int8
    scales_N: jax.Array | None  # float32, of int8 rows
    norms_N: jax.Array  # float32, squared; infinite for padding
    count: int
    mesh: Mesh | None

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self.rows_ND.shape[1]


def load_index(vectors: VectorStore | np.ndarray, mesh: Mesh | None = None) -> Index:
    """Put a store's vectors, or an array [N, D], on the device, or a part of the rows on each of a mesh.

    Each device's rows alone are read from the store. No device needs room for more than its part.

    Raises:
      UserError: an empty store, or an array that is not of two dimensions.
    """
    stored, scales = _stored(vectors)
    count, parts = len(stored), 1 if mesh is None else mesh.size
    blocks = parts > 1 or jax.default_backend() != "cpu"
    each = math.ceil(count / (parts * _BLOCK)) * _BLOCK if blocks else count
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    norms = functools.partial(_norms_of, stored, scales)
    rows_ND = _placed(sharding, (each * parts, stored.shape[1]), stored.dtype, lambda at: stored[at])
    scales_N = None
    if scales is not None:
        scales_N = _placed(sharding, (each * parts,), np.float32, lambda at: scales[at])
    norms_N = _placed(sharding, (each * parts,), np.float32, norms, padding=np.inf)
    return Index(rows_ND, scales_N, norms_N, count, mesh)


def search(index: Index, queries_BD: np.ndarray, k: int) -> Neighbours:
    """Return the k nearest rows of each query by squared Euclidean distance; ties go to the lower id.

    Args:
      index: from `load_index`.
      queries_BD: float32 [B, D], or one query [D].
      k: how many.

    Raises:
      UserError: a query of another width, a k below 1 or above the number of rows.

    Examples:
      >>> index = load_index(np.array([[0, 0], [3, 4], [3, 4], [1, 0]], np.float32))
      >>> found = search(index, np.array([3, 3], np.float32), k=3)
      >>> found.ids.tolist(), found.distances.tolist()
      ([[1, 2, 3]], [[1.0, 1.0, 13.0]])
    """
    queries_BD = np.atleast_2d(np.asarray(queries_BD, np.float32))
    _check(queries_BD, k, index.width, index.count)
    starts = range(0, max(1, len(queries_BD)), _QUERIES)  # no queries are a part, too: an empty answer
    parts = [_search_some(index, queries_BD[at : at + _QUERIES], k) for at in starts]
    return Neighbours(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def search_on_disk(
    vectors: VectorStore | np.ndarray, queries_BD: np.ndarray, k: int, *, block_rows: int = 2**18
) -> Neighbours:
    """Return what `search` does, with `block_rows` rows of the store in memory at a time.

    Raises:
      UserError: see `search` and `load_index`.
    """
    stored, scales = _stored(vectors)
    queries_BD = np.atleast_2d(np.asarray(queries_BD, np.float32))
    _check(queries_BD, k, stored.shape[1], len(stored))
    found = None
    for start in range(0, len(stored), block_rows):
        part = slice(start, start + block_rows)
        index = _index_of(stored[part], None if scales is None else scales[part])
        some = search(index, queries_BD, min(k, index.count))
        some = some._replace(ids=some.ids + start)
        found = some if found is None else merge([found, some], k)
    return found


def merge(parts: list[Neighbours], k: int) -> Neighbours:
    """Return the k nearest among what searches of several parts found; ties go to the lower id."""
    distances, ids = (np.concatenate(each, axis=1) for each in zip(*(p[:2] for p in parts), strict=True))
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    taken = (np.take_along_axis(each, order, axis=1) for each in (distances, ids))
    return Neighbours(*taken, np.all([part.certain for part in parts], axis=0))


def recall(found_ids: np.ndarray, exact_ids: np.ndarray) -> float:
    """Return which part of the exact neighbours was found, over all queries.

    Examples:
      >>> recall(np.array([[1, 2, 9]]), np.array([[1, 2, 3]]))
      0.666...
    """
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found_ids, exact_ids, strict=True)]
    return float(np.sum(hits) / np.size(exact_ids))


def _stored(vectors) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(vectors, VectorStore):
        stored, scales = vectors.vectors_ND, vectors.scales_N
    else:
        stored, scales = np.asarray(vectors), None
    if stored.ndim != 2:
        raise UserError(f"vectors have the shape {stored.shape}; give one row a text, [N, D]")
    if not len(stored):
        raise UserError("the store is empty; build it of one text at least")
    if scales is None and stored.dtype not in (np.float32, np.float16):
        stored = stored.astype(np.float32)
    return stored, scales


def _index_of(stored, scales) -> Index:
    norms_N = _norms_of(stored, scales, slice(None))
    put = lambda x: None if x is None else jax.device_put(np.asarray(x))
    return Index(put(stored), put(scales), put(norms_N), len(stored), None)


def _norms_of(stored, scales, at) -> np.ndarray:
    rows = stored[at]
    norms = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), 65536):  # of a memory-mapped file a part at a time
        some = slice(start, start + 65536)
        x = rows[some].astype(np.float32)
        norms[some] = np.einsum("nd,nd->n", x, x)
    return norms if scales is None else norms * np.square(scales[at], dtype=np.float32)


def _placed(sharding, shape, dtype, read, padding=0) -> jax.Array:
    def part(where):
        start, stop, _ = where[0].indices(shape[0]) if where else (0, shape[0], 1)
        values = np.asarray(read(slice(start, stop)))
        short = stop - start - len(values)
        if not short:
            return values
        return np.concatenate([values, np.full((short, *shape[1:]), padding, dtype)])

    if sharding is None:
        return jax.device_put(part((slice(None),)))
    return jax.make_array_from_callback(shape, sharding, part)


def _check(queries_BD, k: int, width: int, count: int) -> None:
    if queries_BD.ndim != 2 or queries_BD.shape[1] != width:
        raise UserError(
            f"queries have the shape {queries_BD.shape} and the store's vectors have width {width}; embed "
            "the queries with the encoder that built the store"
        )
    if not 1 <= k <= count:
        raise UserError(f"k is {k}; it must be from 1 to the {count} rows of the store")


def _search_some(index: Index, queries_BD: np.ndarray, k: int) -> Neighbours:
    """Search, and again with more candidates for the queries that are not certain."""
    each = index.rows_ND.shape[0] // (1 if index.mesh is None else index.mesh.size)
    candidates = min(each, max(2 * k, k + 32))
    found = _call(index, queries_BD, k, candidates)
    for _ in range(_WIDENINGS):
        unsure = np.flatnonzero(~found.certain)
        if not len(unsure) or candidates == each:
            break
        candidates = min(each, 2 * candidates)
        again = _call(index, queries_BD[unsure], k, candidates)
        for whole, part in zip(found, again, strict=True):
            whole[unsure] = part
    return found


def _call(index: Index, queries_BD, k, candidates) -> Neighbours:
    count = len(queries_BD)
    padded = np.zeros((1 << (count - 1).bit_length(), queries_BD.shape[1]), np.float32)  # few programs
    padded[:count] = queries_BD
    arrays = index.rows_ND, index.scales_N, index.norms_N, padded
    found = jax.device_get(search_program(*arrays, mesh=index.mesh, k=k, candidates=candidates))
    distances, ids, certain = (np.array(x[:count]) for x in found)
    return Neighbours(distances, ids.astype(np.int64), certain)


@functools.partial(jax.jit, static_argnames=("mesh", "k", "candidates"))
def search_program(rows_ND, scales_N, norms_N, queries_BD, *, mesh: Mesh | None, k: int, candidates: int):
    """Return (distances [B, k], ids [B, k], certain [B]): the program that `search` calls.

    Args:
      rows_ND, scales_N, norms_N: as of `Index`; split over all axes of the mesh, if there is one.
      queries_BD: float32 [B, D], on every device.
      mesh: over which rows are split, or None.
      k: how many neighbours.
      candidates: rows of each device whose distance is computed directly.
    """
    if mesh is None:
        distances, ids, beyond_B = _nearest(rows_ND, scales_N, norms_N, queries_BD, k, candidates)
        return distances, ids, distances[:, -1] <= beyond_B
    axes, split, whole = mesh.axis_names, PartitionSpec(mesh.axis_names), PartitionSpec()

    def on_part(rows_ND, scales_N, norms_N, queries_BD):
        some = min(k, rows_ND.shape[0])
        distances, ids, beyond_B = _nearest(rows_ND, scales_N, norms_N, queries_BD, some, candidates)
        ids += jax.lax.axis_index(axes) * rows_ND.shape[0]
        distances, ids = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (distances, ids))
        distances, ids = jax.lax.sort((distances, ids), num_keys=2)
        distances, ids = distances[:, :k], ids[:, :k]
        return distances, ids, distances[:, -1] <= jax.lax.pmin(beyond_B, axes)

    specs = dict(in_specs=(split, split, split, whole), out_specs=(whole,) * 3)
    return jax.shard_map(on_part, mesh=mesh, check_vma=False, **specs)(rows_ND, scales_N, norms_N, queries_BD)


def _nearest(rows_ND, scales_N, norms_N, queries_BD, k, candidates):
    """Return (distances, ids) of one device's k nearest, and what no row left out is nearer than."""
    query_norms_B1 = jnp.sum(jnp.square(queries_BD), axis=1, keepdims=True)
    # Rounding moves a product of D terms by eps sqrt(D) |x| |q| at most, but for one in millions. Take off
    # twice that, with |x|^2 + |q|^2 for 2 |x| |q|.
    sure = 1 - 4 * float(np.finfo(np.float32).eps) * math.sqrt(queries_BD.shape[1])
    least_BN = sure * (norms_N + query_norms_B1) - 2 * _products(rows_ND, scales_N, queries_BD)
    near_BC, ids_BC = _least(least_BN, candidates)
    rows_BCD = rows_ND[ids_BC].astype(jnp.float32)
    if scales_N is not None:
        rows_BCD = rows_BCD * scales_N[ids_BC][..., None]
    direct_BC = jnp.sum(jnp.square(rows_BCD - queries_BD[:, None]), axis=2)
    direct_BC = jnp.where(jnp.isinf(norms_N)[ids_BC], jnp.inf, direct_BC)
    direct_BC, ids_BC = jax.lax.sort((direct_BC, ids_BC), num_keys=2)
    all_seen = candidates >= norms_N.shape[0]
    beyond_B = jnp.full_like(near_BC[:, -1], jnp.inf) if all_seen else near_BC[:, -1]
    return direct_BC[:, :k], ids_BC[:, :k], beyond_B


def _products(rows_ND, scales_N, queries_BD):
    """Return x.q of every row and query, [B, N]. Rows of a narrow type are widened a part at a time."""

    def product(rows_ND):
        rows_ND = rows_ND.astype(jnp.float32)
        return jnp.einsum("bd,nd->bn", queries_BD, rows_ND, precision=jax.lax.Precision.HIGHEST)

    count, width = rows_ND.shape
    if rows_ND.dtype == jnp.float32 or count <= _CONVERTED:
        products_BN = product(rows_ND)
    else:
        whole = count // _CONVERTED * _CONVERTED
        parts = jax.lax.map(product, rows_ND[:whole].reshape(-1, _CONVERTED, width))
        products_BN = jnp.moveaxis(parts, 1, 0).reshape(len(queries_BD), whole)
        products_BN = jnp.concatenate([products_BN, product(rows_ND[whole:])], axis=1)
    return products_BN if scales_N is None else products_BN * scales_N


def _least(distances_BN, count):
    """Return the `count` least values of each row and their places; ties go to the lower place."""
    size = distances_BN.shape[1]
    if size % _BLOCK or size < 4 * count * _BLOCK:
        return _sorted_least(distances_BN, count)
    return jax.lax.platform_dependent(
        distances_BN, cpu=lambda x: _sorted_least(x, count), default=lambda x: _block_least(x, count)
    )


def _sorted_least(values_BN, count):
    negative, places = jax.lax.top_k(-values_BN, count)
    return -negative, places


def _block_least(values_BN, count):
    # The `count` least values lie in the `count` blocks with the least minima, so two small sorts will do.
    blocks_BMK = values_BN.reshape(len(values_BN), -1, _BLOCK)
    _, chosen_BC = _sorted_least(jnp.min(blocks_BMK, axis=2), count)
    chosen_BC = jnp.sort(chosen_BC, axis=1)  # so that ties go to the lower place
    inner_BC = jnp.take_along_axis(blocks_BMK, chosen_BC[..., None], axis=1).reshape(len(values_BN), -1)
    values, places = _sorted_least(inner_BC, count)
    blocks = jnp.take_along_axis(chosen_BC, places // _BLOCK, axis=1)
    return values, blocks * _BLOCK + places % _BLOCK
