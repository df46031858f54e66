"""What a checkpoint is read back as: what was written, an older one, or one sentence."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.errors import UserError
from jaxllm.train import RunConfig, checkpoint, train
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.checksum import checksums
from jaxllm.train.state import init_state
from tests.train.test_task import TASK

STEPS = (1, 2)


def a_state(seed):
    init = lambda key: {"w": jax.random.normal(key, (40, 30)), "b": jnp.ones(3, jnp.bfloat16)}  # noqa: E731
    return init_state(init, optax.adam(1.0), jax.random.key(seed))


@pytest.fixture(scope="module")
def states():
    return {step: a_state(step) for step in STEPS}


@pytest.fixture(scope="module")
def written(tmp_path_factory, states):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    with Checkpoints(folder) as kept:
        for step, state in states.items():
            kept.save(state, step=step, data={"step": step}, config={"seed": step}, heldout_loss=-step)
    return folder


def shapes(state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def read(kept, like):
    def whole(step):
        config = kept.config(step)
        return config, *kept.restore(step, like)

    return kept.newest_whole(whole)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def replace(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


HARM = {
    "removed": lambda path: path.unlink(),
    "emptied": replace(lambda content: b""),
    "cut": replace(lambda content: content[: len(content) // 2]),
    "flipped": replace(flip),
    "zeros": replace(lambda content: bytes(len(content))),
    "garbage": replace(lambda content: b'{"a": [1, "\xff' * 9),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


def assert_state(state, wanted):
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize("harms", [["flipped", "removed"], pytest.param([*HARM], marks=pytest.mark.slow)])
def test_however_the_newest_checkpoint_is_harmed_what_is_read_is_what_was_written(
    written, states, tmp_path, capfd, harms
):
    """Either nothing that matters was harmed, or the older one is read and the newer one named."""
    like, passed_over = shapes(states[1]), 0
    files = sorted(p.relative_to(written) for p in (written / "2").rglob("*"))
    cases = [(path, name) for path in files for name in harms if (written / path).is_file()]
    cases += [(path, "removed whole") for path in files if (written / path).is_dir()]
    for number, (path, name) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        shutil.rmtree(folder / path) if name == "removed whole" else HARM[name](folder / path)
        step, (config, state, position), damaged = read(Checkpoints(folder), like)
        said = capfd.readouterr().err
        assert_state(state, states[step])
        assert config == {"seed": step} and position == {"step": step}
        assert damaged == ([] if step == 2 else [2])
        assert ("is damaged" in said and str(folder / "2") in said) == (step == 1), (path, name, said)
        passed_over += step == 1
        shutil.rmtree(folder)
    assert passed_over > 8 * len(harms)


def test_a_run_goes_on_from_the_older_checkpoint_and_writes_the_newer_one_again(written, states, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    (folder / "2" / "config" / "metadata").unlink()
    with Checkpoints(folder) as kept:
        step, _, damaged = read(kept, shapes(states[1]))
        kept.set_aside(damaged)
        kept.save(states[2], step=2, data={"step": 2}, config={"seed": 2})
        kept.wait()
        assert step == 1 and kept.steps() == [1, 2] and (folder / "damaged-2").is_dir()
        assert read(kept, shapes(states[1]))[0] == 2


def test_where_all_are_damaged_one_sentence_says_so_and_nothing_is_touched(written, states, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    for step in STEPS:
        (folder / str(step) / "data" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"the checkpoints 1, 2 in .* are damaged \(2: .*; 1: .*no whole one"):
        read(Checkpoints(folder), shapes(states[1]))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_another_state_is_not_called_damage(written, states):
    other = dataclasses.replace(states[1], opt_state=optax.sgd(1.0, momentum=0.9).init(states[1].params))
    with pytest.raises(UserError, match=r"holds another state .* opt_state.* the same optimizer"):
        read(Checkpoints(written), shapes(other))
    params = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2), x.dtype), states[1].params)
    said = r"\(it has params/b: bfloat16\[3\], params/w: .* the run .*, params/w: .*\); .* the same model"
    with pytest.raises(UserError, match=said):
        read(Checkpoints(written), shapes(dataclasses.replace(states[1], params=params)))


def test_reading_touches_nothing_of_a_checkpoint_that_is_being_written(written, states, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    partial = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(written / "2", partial)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(folder) as kept:
        assert read(kept, shapes(states[1]))[0] == 2 and kept.best() == 2 and kept.latest() == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_optimizer_that_keeps_a_random_key_goes_on_with_it(tmp_path):
    """optax.add_noise: two steps and one from their checkpoint are the three that were never stopped."""
    options = dict(
        optimizer=optax.chain(optax.add_noise(0.1, 0.55, 7), optax.sgd(0.1)), devices=jax.devices()[:1]
    )

    def run(name, steps):
        config = RunConfig(steps=steps, progress=False, save_every=10, out=str(tmp_path / name))
        return train(TASK, config, **options).params

    run("halves", 2)
    jax.tree.map(np.testing.assert_array_equal, run("halves", 3), run("whole", 3))


def test_what_is_wrong_with_a_state_is_not_said_of_the_disk(tmp_path, states, monkeypatch):
    def wrong(tree):
        raise ValueError("no checksum of such an array")

    monkeypatch.setattr(checkpoint, "checksums", wrong)
    with Checkpoints(tmp_path) as kept, pytest.raises(ValueError, match="^no checksum of such an array"):
        kept.save(states[1], step=1, data={}, config={})


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2"])
def test_numbers_of_less_than_a_byte_have_checksums(dtype):
    """The same as their bits would have in a byte each, and of types that store them so."""
    bits = np.arange(15, dtype=np.uint8).reshape(3, 5) % 2 ** int(dtype[-1])
    [found] = checksums([jnp.asarray(bits).astype(dtype)]).values()
    assert found == checksums([bits])["0: uint8[3, 5]"]


def test_random_keys_have_the_checksums_of_their_data():
    keys = jax.random.split(jax.random.key(3), 4)
    [found], [wanted] = (checksums([x]).values() for x in (keys, jax.random.key_data(keys)))
    assert found == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float8_e4m3fn"])
def test_a_checksum_is_that_of_the_numbers_and_their_places(dtype):
    """Of any one bit, of two entries that change places, and of no way to split the array."""
    x = np.random.default_rng(0).integers(0, 2, (8, 6)) if dtype == "bool" else np.arange(48).reshape(8, 6)
    x = np.asarray(jnp.asarray(x, dtype))
    one = checksums([x])
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b")))
    assert checksums([spread]) == one
    seen = {*one.values()}
    bits = x.view(f"uint{8 * x.dtype.itemsize}")
    for bit in range(1 if dtype == "bool" else 8 * x.dtype.itemsize):
        changed = bits.copy()
        changed[3, 1] ^= np.asarray(1 << bit).astype(bits.dtype)
        seen |= set(checksums([changed.view(x.dtype)]).values())
    assert len(seen) == 1 + (1 if dtype == "bool" else 8 * x.dtype.itemsize)
    swapped = x.copy()
    swapped.flat[[4, 20]] = x.flat[[20, 4]]
    assert (checksums([swapped]) == one) == bool((x.flat[4] == x.flat[20]).item())
    assert checksums([x.reshape(6, 8)]) != one
