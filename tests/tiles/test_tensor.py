"""Tiles cover their tensor, the last of an axis with what is left."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.tiles.tensor import Tensor, cut, join


@pytest.mark.parametrize(
    "shape, tile", [((37,), (16,)), ((4, 37), (3, 16)), ((3, 5, 2), (3, 5, 2)), ((), ()), ((2, 3), (1, 1))]
)
def test_cut_and_joined_is_the_same(shape, tile):
    tensor = Tensor("x", shape, tile, "int32", first=7)
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    tiles = cut(tensor, jnp.asarray(array))
    assert [t.shape for t in tiles] == [tensor.shape_of(*index) for index in tensor.indices()]
    assert [tensor[index] for index in tensor.indices()] == list(tensor.handles())
    assert sum(tensor.nbytes_of(*index) for index in tensor.indices()) == array.nbytes
    np.testing.assert_array_equal(join(tensor, tiles), array)


def test_a_tile_s_name_holds_its_place():
    tensor = Tensor("x", (4, 37), (2, 16), first=10)
    assert tensor.label(tensor[1, 2]) == "x[1,2]" and Tensor("loss", (), ()).label(0) == "loss[]"


@pytest.mark.parametrize("tile", [(4,), (4, 0), (2, 3, 4)])
def test_tiles_that_cannot_cover_a_shape_are_refused(tile):
    with pytest.raises(UserError, match=r"tensor 'x' of shape \(4, 37\) cannot be covered by tiles of shape"):
        Tensor("x", (4, 37), tile)
