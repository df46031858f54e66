"""The reader of compiled programs, on small programs whose content is known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxllm.targets import hlo, traffic
from jaxllm.targets.catalog import get_target
from jaxllm.targets.cost import count_work
from jaxllm.targets.flops import matmul_flops

CPU = get_target("cpu")


def module_of(fn, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(fn).lower(*args).compile().as_text())


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[512,32]{0,1:T(8,128)}", 32 * 512 * 4),  # 512 lies innermost, in tiles of 128
        ("f32[2,256]{1,0:T(2,128)}", 2 * 256 * 4),
        ("f32[3,100]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[5,130]{1,0:T(8,128)(2,1)}", 8 * 256 * 2),
        ("f32[]{:T(128)}", 128 * 4),
        ("pred[7]{0}", 7),
        ("s4[10]{0:E(4)}", 5),
        ("f32[4,4]{1,0}", 64),
    ],
)
def test_sizes_include_the_padding_of_tiles(text, size):
    assert hlo._shape(text).bytes == size


def test_vector_memory_is_not_main_memory():
    shape = hlo._shape("(f32[8]{0:T(128)S(1)}, (f32[8]{0}, u32[]{:S(2)}), f32[8]{0:S(5)})")
    assert shape.bytes_in(hlo.HBM) == 32
    assert shape.bytes_in(hlo.HOST) == 32
    assert len(list(shape.leaves())) == 4


def nested(x):
    def inner(y, _):
        return jnp.tanh(y @ y), None

    def outer(y, _):
        return jax.lax.scan(inner, y, None, length=5)[0], None

    return jax.lax.scan(outer, x, None, length=3)[0]


def test_trip_counts_multiply_through_nested_loops():
    work = count_work(module_of(nested, (32, 32)), CPU, {})
    assert work.flops == {"f32": 15 * 2 * 32**3}


def test_trip_counts_are_read_from_the_condition_where_nothing_else_tells():
    text = jax.jit(nested).lower(jax.ShapeDtypeStruct((32, 32), jnp.float32)).compile().as_text()
    assert "known_trip_count" in text
    module = hlo.parse(text.replace("known_trip_count", "nothing"))
    assert sorted(times for _, times in module.scheduled())[-1] == 15


@pytest.mark.parametrize(
    "attributes, left, right, out, pairs",
    [
        # A plain product, [B, T, D] x [D, F].
        ("window={size=1}, dim_labels=0bf_io0->0bf", (4, 8, 16), (16, 32, 1), (4, 8, 32), 4 * 8 * 16 * 32),
        # Two batch dimensions of size 2, spelled as a dilated window.
        ("window={size=2x2 lhs_dilate=2x2}, dim_labels=01bf_01oi->01bf",
         (2, 2, 8, 16), (2, 2, 32, 16), (2, 2, 8, 32), 2 * 2 * 8 * 16 * 32),
        # The same, spelled with strides and padding.
        ("window={size=2x2 stride=2x2 pad=1_1x1_1 rhs_reversal=1x1}, dim_labels=01fb_01oi->01fb",
         (2, 2, 16, 8), (2, 2, 32, 16), (2, 2, 32, 8), 2 * 2 * 8 * 16 * 32),
        # Output heads from a padded window: [B, T, D] x [D, H, K], D over sublanes.
        ("window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
         (4, 8, 16, 1), (16, 2, 32, 1), (4, 8, 2, 32), 4 * 8 * 2 * 16 * 32),
    ],
)  # fmt: skip
def test_a_tpu_convolution_counts_as_the_product_it_was(attributes, left, right, out, pairs):
    def line(name, dims, rest):
        return f"  {name} = f32[{','.join(map(str, dims))}] {rest}"

    text = "\n".join(
        ["HloModule m, is_scheduled=true", "ENTRY %main () -> f32[] {",
         line("%a", left, "parameter(0)"), line("%b", right, "parameter(1)"),
         line("ROOT %c", out, f"convolution(%a, %b), {attributes}"), "}"]
    )  # fmt: skip
    module = hlo.parse(text)
    assert matmul_flops(module, module.entry, module.entry.root) == {"f32": 2.0 * pairs}


def test_bytes_moved_of_a_fused_elementwise_program_are_its_inputs_and_outputs():
    work = count_work(module_of(lambda a, b: jnp.tanh(a) * b + 1, (1000, 100), (1000, 100)), CPU, {})
    assert work.bytes_moved == 3 * 1000 * 100 * 4


def test_slices_that_a_tpu_fetches_ahead_count_as_themselves():
    """Two halves of an array, copied to vector memory one by one: the array once."""
    part, flag = "f32[8,128]{1,0:T(8,128)S(1)}", "s32[]{:S(2)}"
    start = f"((f32[16,128]{{1,0:T(8,128)}}), {part}, {flag}) slice-start(%a), slice="
    text = "\n".join(
        ["HloModule m, is_scheduled=true", "", "ENTRY %main (p: f32[16,128]) -> f32[8,128] {",
         "  %a = f32[16,128]{1,0:T(8,128)} parameter(0)",
         f"  %s.0 = {start}{{[0:8], [0:128]}}", f"  %s.1 = {start}{{[8:16], [0:128]}}",
         f"  %d.0 = {part} slice-done(%s.0)", f"  ROOT %d.1 = {part} slice-done(%s.1)", "}"]
    )  # fmt: skip
    assert count_work(hlo.parse(text), get_target("v5e-1"), {}).bytes_moved == 16 * 128 * 4


def test_a_loop_over_stacked_weights_reads_each_layer_once():
    layers, width, rows = 16, 256, 8

    def apply(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    moved = count_work(module_of(apply, (layers, width, width), (rows, width)), CPU, {}).bytes_moved
    weights = layers * width * width * 4
    # The slice may be copied out once (read, write, read), and rows are small beside it.
    assert weights <= moved < 3.3 * weights


@pytest.mark.parametrize(
    "attributes, groups",
    [
        ("replica_groups={{0,1},{2,3}}, use_global_device_ids=true", [[0, 1], [2, 3]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['x'=8] {'x':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_device_groups_are_read_in_every_form(attributes, groups):
    assert traffic.device_groups(attributes) == groups


def test_mesh_axes_of_groups():
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    assert traffic.mesh_axes([[0, 4], [1, 5]], sizes) == "data"
    assert traffic.mesh_axes([[0, 2], [1, 3]], sizes) == "fsdp"
    assert traffic.mesh_axes([[0, 1, 2, 3]], sizes) == "fsdp+tensor"
    assert traffic.mesh_axes([], sizes) == "data+fsdp+tensor"


def test_a_tpu_s_reduce_scatter_sends_half_of_the_all_reduce_that_its_text_shows():
    module = hlo.parse("""HloModule m, is_scheduled=true
%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,32]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  %partition-id.1 = u32[] partition-id()
  ROOT %dynamic-slice.1 = bf16[16,32]{1,0} dynamic-slice(%all-reduce.1, %partition-id.1, %partition-id.1)
}
ENTRY %main (p: bf16[64,32]) -> bf16[16,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  ROOT %fusion.1 = bf16[16,32]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}""")
    [(kind, sent, groups, window)] = traffic.collectives(module, module.entry)
    assert (kind, sent, groups) == ("reduce-scatter", 64 * 32 * 2 * 3 / 4, [[0, 1, 2, 3]])
    assert not window


def test_a_transfer_is_exposed_as_far_as_nothing_runs_beside_it():
    """One gather beside a copy, in a loop of three; another that the device waits for."""
    module = hlo.parse("""HloModule m, is_scheduled=true
%body (q: f32[1000]) -> f32[1000] {
  %q = f32[1000]{0} parameter(0)
  %all-gather-start.1 = (f32[1000]{0}, f32[2000]{0}) all-gather-start(%q), replica_groups={{0,1}}
  %copy.1 = f32[1000]{0} copy(%q)
  %all-gather-done.1 = f32[2000]{0} all-gather-done(%all-gather-start.1)
  %all-gather.2 = f32[2000]{0} all-gather(%q), replica_groups={{0,1}}
  ROOT %copy.2 = f32[1000]{0} copy(%copy.1)
}
%condition (r: f32[1000]) -> pred[] {
  %r = f32[1000]{0} parameter(0)
  ROOT %true = pred[] constant(true)
}
ENTRY %main (p: f32[1000]) -> f32[1000] {
  %p = f32[1000]{0} parameter(0)
  ROOT %while.1 = f32[1000]{0} while(%p), condition=%condition, body=%body, b={"known_trip_count":{"n":"3"}}
}""")
    memory, network = 8e6, 2e6  # bytes/s: a copy moves 8000 bytes in 1 ms, a gather sends 4000 in 2 ms
    target = dataclasses.replace(CPU, hbm_bandwidth=memory, network_bandwidth=network, fast_devices=2)
    work = count_work(module, target, {"fsdp": 2})
    assert work.sent == {"fsdp": 3 * 2 * 4000}
    assert work.network_seconds == pytest.approx(3 * 2 * 2e-3)
    assert work.exposed_seconds == pytest.approx(3 * (2e-3 - 1e-3 + 2e-3))
