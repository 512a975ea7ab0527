"""Operations and traffic read from compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from inf_jax.planning.chips import Chip
from inf_jax.planning.hlo import Collective, collectives
from inf_jax.planning.hlo_cost import InstructionCost, instruction_costs
from inf_jax.planning.roofline import predict, predicted_seconds

CHIP = Chip(
    flops=1e12,
    hbm=1e9,
    usable=1e9,
    hbm_rate=1e11,
    links=4,
    wraps=4,
    link_rate=1e10,
    dcn_rate=1e9,
    clock=0,
    source="made up",
)


def test_work_of_this_compiler():
    """A loop of 5 turns over slices of a stack, on 8 devices."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, stack):
        def turn(x, w):
            y = jnp.tanh(x @ w)
            return jax.lax.ppermute(y, "d", [(i, (i + 1) % 8) for i in range(8)]), None

        x = jax.lax.scan(turn, x, stack)[0]
        return jax.lax.psum(x, "d")

    specs = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()
    step = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[1])
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 256), (5, 256, 256))]
    compiled = jax.jit(step).lower(*shapes).compile()
    found = instruction_costs(compiled.as_text())
    assert sum(w.times * w.flops for w in found) == 5 * 2 * 8 * 256 * 256
    once = compiled.cost_analysis()["flops"]
    assert sum(w.flops for w in found) <= once < 1.1 * sum(w.flops for w in found)
    # a turn reads its slice of the stack (256 KiB), not the stack; the vectors are small beside it
    traffic = sum(w.times * w.traffic for w in found)
    assert 5 * 256 * 256 * 4 <= traffic < 3.5 * 5 * 256 * 256 * 4
    moved = collectives(compiled.as_text())
    assert [(c.kind, c.times, c.size, c.group) for c in moved] == [
        ("collective-permute", 5, 8 * 256 * 4, 2),
        ("all-reduce", 1, 8 * 256 * 4, 8),
    ]


# Lines as libtpu prints them, less layouts that do not matter.
TPU_TEXT = """\
HloModule jit_step, is_scheduled=true

%products (param_0: bf16[16,512,768], param_1: bf16[768,12,64]) -> bf16[12,64,16,512] {
  %param_0 = bf16[12,16,512,768]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[1,768,12,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[16,12,512,512]{2,3,1,0:T(8,128)} convolution(%a, %b), \
window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=01bf_01oi->01bf
  %a = bf16[16,12,512,64]{3,2,1,0} parameter(2)
  %b = bf16[16,12,512,64]{3,2,1,0} parameter(3)
}

ENTRY %main (x: f32[96,768], y: f32[1536,768]) -> f32[96,1536] {
  %x = f32[96,768]{1,0:T(8,128)} parameter(0)
  %y = f32[1536,768]{1,0:T(8,128)S(1)} parameter(1)
  %fusion = f32[16,12,512,512]{2,3,1,0:T(8,128)S(1)} fusion(%x), kind=kOutput, calls=%products, \
backend_config={"estimated_cycles":"1500"}
  %copy-start = (f32[96,768]{1,0:T(8,128)S(1)}, f32[96,768]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x)
  %copy-done = f32[96,768]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %both = (f32[8,128]{1,0:T(8,128)}, f32[16]{0}) all-reduce(%p, %q), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_1'}, \
to_apply=%add
  %part = f32[8,128]{1,0} reduce-scatter(%r), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0)
  %send = (f32[2,8,128]{2,1,0}, u32[], token[]) send(%part, %after), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %tile = f32[96,1536]{1,0:T(8,128)S(1)} fusion(%x), kind=kOutput, calls=%products
  %send-done = token[] send-done(%send), channel_id=3
  ROOT %convolution.2 = f32[96,1536]{1,0:T(8,128)} convolution(%x, %y), dim_labels=bf_oi->bf, \
operand_precision={highest,highest}
}
"""


def test_work_of_a_tpu_program():
    found = [w for w in instruction_costs(TPU_TEXT) if w.flops or w.traffic or w.cycles]
    batched, copied, *_, last = found
    # a batched product is a convolution whose window meets one entry at a place
    assert batched.flops == batched.unit_flops == 2 * 16 * 12 * 512 * 512 * 64
    assert batched.cycles == 1500
    # one side of the copy is memory, and nothing waits for it
    assert copied.traffic == 96 * 768 * 4 and not copied.blocking
    assert last.flops == 2 * 96 * 1536 * 768 and last.unit_flops == 6 * last.flops
    assert last.traffic == 4 * (96 * 768 + 96 * 1536)  # y is on the chip
    reduced, part, sent = collectives(TPU_TEXT)
    assert (reduced.size, reduced.groups) == (
        4 * (1024 + 16),
        (tuple(range(8)), tuple(range(8, 16))),
    )
    assert part.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert sent == Collective("dcn all-reduce", 1, 8192, blocking=False, overlapped=True)


ASYNC_TEXT = """\
HloModule jit_step, is_scheduled=true

%begin (p: bf16[48,8960]) -> (bf16[48,8960], bf16[1536,8960], u32[]) {
  %p = bf16[48,8960]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1536,8960]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, dimensions={0}
  ROOT %custom-call.1 = (bf16[48,8960]{1,0}, bf16[1536,8960]{1,0}, u32[]{:S(2)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p: bf16[48,8960], q: bf16[1536,8960], s: u32[], x: bf16[64,256], \
y: bf16[256,128]) -> (bf16[64,128], bf16[48,8960], bf16[1536,8960], bf16[1536,8960], u32[]) {
  %x = bf16[64,256]{1,0} parameter(3)
  %y = bf16[256,128]{1,0} parameter(4)
  %convolution.2 = bf16[64,128]{1,0} convolution(%x, %y), dim_labels=bf_io->bf
  %p = bf16[48,8960]{1,0} parameter(0)
  %q = bf16[1536,8960]{1,0} parameter(1)
  %s = u32[]{:S(2)} parameter(2)
  %all-gather.2 = bf16[1536,8960]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  ROOT %tuple.2 = (bf16[64,128]{1,0}, bf16[48,8960]{1,0}, bf16[1536,8960]{1,0}, \
bf16[1536,8960]{1,0}, u32[]{:S(2)}) tuple(%convolution.2, %p, %q, %all-gather.2, %s)
}

%end (p: bf16[48,8960], q: bf16[1536,8960], s: u32[]) -> bf16[1536,8960] {
  %p = bf16[48,8960]{1,0} parameter(0)
  %q = bf16[1536,8960]{1,0} parameter(1)
  %s = u32[]{:S(2)} parameter(2)
  %all-gather.3 = bf16[1536,8960]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  ROOT %custom-call.3 = bf16[1536,8960]{1,0} custom-call(%p, %q, %all-gather.3, %s), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[48,8960], x: bf16[64,256], y: bf16[256,128]) -> bf16[1536,8960] {
  %w = bf16[48,8960]{1,0} parameter(0)
  %x = bf16[64,256]{1,0} parameter(1)
  %y = bf16[256,128]{1,0} parameter(2)
  %start = (bf16[48,8960]{1,0}, bf16[1536,8960]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
  %a = bf16[48,8960]{1,0} get-tuple-element(%start), index=0
  %b = bf16[1536,8960]{1,0} get-tuple-element(%start), index=1
  %c = u32[]{:S(2)} get-tuple-element(%start), index=2
  %product = (bf16[64,128]{1,0}, bf16[48,8960]{1,0}, bf16[1536,8960]{1,0}, \
bf16[1536,8960]{1,0}, u32[]{:S(2)}) fusion(%a, %b, %c, %x, %y), kind=kOutput, \
calls=%async_collective_fusion.2
  %d = bf16[48,8960]{1,0} get-tuple-element(%product), index=1
  %e = bf16[1536,8960]{1,0} get-tuple-element(%product), index=3
  %f = u32[]{:S(2)} get-tuple-element(%product), index=4
  ROOT %done = bf16[1536,8960]{1,0} fusion(%d, %e, %f), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%end
}
"""


def test_a_collective_beside_products_is_not_their_traffic():
    start, product, *others = [w for w in instruction_costs(ASYNC_TEXT) if w.flops or w.traffic]
    assert start.traffic == 1536 * 8960 * 2 and not start.blocking
    assert product.traffic == 2 * (64 * 256 + 256 * 128 + 64 * 128) and product.blocking
    assert product.flops == 2 * 64 * 256 * 128
    assert not others  # the end hands on what has arrived


KERNEL = """\
  %splash_mha_{name}.{number} = ({results}) custom-call(%blocks, %blocks, %q, %kv, %kv), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q{suffix}\\": 128, \\"block_kv{suffix}\\": 128}}"
}}}}, metadata={{op_name="jit(step)/attention/splash_mha_{name}/pallas_call"}}
"""


KERNELS_TEXT = (
    """\
HloModule jit_step, is_scheduled=true

ENTRY %main (q: bf16[3,8,512,64], kv: bf16[3,2,512,64]) -> bf16[3,8,512,64] {
  %blocks = s8[1,4,2]{2,1,0} parameter(0)
  %q = bf16[3,8,512,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %kv = bf16[3,2,512,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(2)
"""
    + KERNEL.format(name="fwd_segmented", number=1, results="bf16[3,8,512,64]{3,2}", suffix="")
    + KERNEL.format(
        name="dkv_segmented",
        number=2,
        results="f32[3,128,64]{2,1,0}, bf16[3,2,512,64]{3,2,1,0}, bf16[3,2,512,64]{3,2,1,0}",
        suffix="_dkv",
    )
    + KERNEL.format(
        name="dkv_segmented",
        number=3,
        results="bf16[3,4,8,512,64]{4,3}, bf16[3,2,512,64]{3,2}, bf16[3,2,512,64]{3,2}",
        suffix="_dkv",
    )
    + KERNEL.format(name="dq_segmented", number=4, results="bf16[3,8,512,64]{3,2}", suffix="_dq")
    + """\
  ROOT %other = bf16[3,8,512,64]{3,2} custom-call(%q), custom_call_target="tpu_custom_call"
}
"""
)


def test_work_of_attention_kernels():
    found = [w for w in instruction_costs(KERNELS_TEXT) if w.flops or w.traffic]
    # 3 rows, 8 heads, a grid of 4 x 2 blocks of 128 x 128 pairs
    product = 2 * 3 * 8 * 4 * 2 * 128 * 128 * 64
    assert [w.flops / product for w in found] == [2, 4, 5, 3]
    assert all(w.unit_flops == w.flops and w.blocking for w in found)
    assert [w.kernel for w in found[:2]] == ["splash_mha_fwd_segmented", "splash_mha_dkv_segmented"]
    q = 3 * 8 * 512 * 64 * 2  # k and v are on the chip
    assert found[0].traffic == 2 * 8 + q + q
    assert found[1].traffic == 2 * 8 + q + 4 * 3 * 128 * 64 + 2 * (q // 4)
    # the compiler has no cycles of them
    clocked = dataclasses.replace(CHIP, clock=1e9)
    other = InstructionCost(
        times=1, flops=1.0, unit_flops=1.0, traffic=0, cycles=10**9, blocking=True
    )
    ran = predict([*found, other], [], clocked)
    assert ran.compiler == pytest.approx(1 + predict(found, [], clocked).work)


# Lines as XLA prints them for an H200, less what does not matter.
GPU_TEXT = """\
HloModule jit_step, is_scheduled=true

%keep (into: bf16[6,512,256,384], at: s32[], part: bf16[512,256,384]) -> bf16[6,512,256,384] {
  %into = bf16[6,512,256,384]{3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %part = bf16[512,256,384]{2,1,0} parameter(2)
  %bitcast = bf16[1,512,256,384]{3,2,1,0} bitcast(%part)
  ROOT %update = bf16[6,512,256,384]{3,2,1,0} dynamic-update-slice(%into, %bitcast, %at, %at, \
%at, %at)
}

%gemm_fusion (x: bf16[131072,1536], y: bf16[1536,384]) -> bf16[131072,384] {
  %x = bf16[131072,1536]{1,0} parameter(0)
  %y = bf16[1536,384]{1,0} parameter(1)
  ROOT %dot = bf16[131072,384]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[131072,384], w: bf16[384,1536]) -> bf16[131072,1536] {
  %a = bf16[131072,384]{1,0} parameter(0)
  %w = bf16[384,1536]{1,0} parameter(1)
  %v = bf16[1536,384]{1,0} parameter(2)
  %stack = bf16[6,512,256,384]{3,2,1,0} parameter(3)
  %at = s32[] parameter(4)
  %q = bf16[512,256,12,32]{3,2,1,0} parameter(5)
  %bias = bf16[512,1,256,256]{3,2,1,0} parameter(6)
  %stat = f32[512,12,256]{2,1,0} parameter(7)
  %up = (bf16[131072,1536]{1,0}, s8[33554432]{0}) custom-call(%a, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,\
"dot_dimension_numbers":{"lhs_batch_dimensions":[],"lhs_contracting_dimensions":["1"],\
"rhs_batch_dimensions":[],"rhs_contracting_dimensions":["0"]},"epilogue":"DEFAULT"}}
  %got = bf16[131072,1536]{1,0} get-tuple-element(%up), index=0
  %down = bf16[131072,384]{1,0} fusion(%got, %v), kind=kCustom, calls=%gemm_fusion
  %start = ((bf16[6,512,256,384]{3,2,1,0}, s32[], bf16[512,256,384]{2,1,0}), \
bf16[6,512,256,384]{3,2,1,0}, u32[]) fusion-start(%stack, %at, %down), kind=kLoop, calls=%keep
  %fwd = (bf16[512,12,256,32]{3,1,2,0}, f32[512,12,256]{2,1,0}, u8[256]{0}) custom-call(%q, %q, %q,\
 %bias), custom_call_target="__cudnn$fmhaScaleBiasSoftmax", backend_config=\
{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":["512","12","256","256"]},\
"mask_type":"NO_MASK"}}
  %bwd = (bf16[512,12,256,32]{3,1,2,0}, bf16[512,12,256,32]{3,1,2,0}, bf16[512,12,256,32]{3,1,2,0},\
 u8[207618304]{0}) custom-call(%q, %q, %q, %stat, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config":\
{"intermediate_tensor_shape":{"dimensions":["512","12","256","256"]},"mask_type":"CAUSAL"}}
  %done = bf16[6,512,256,384]{3,2,1,0} fusion-done(%start)
  ROOT %other = u32[16]{0} custom-call(%at), custom_call_target="annotate"
}
"""


def test_work_of_a_gpu_program():
    up, down, kept, forward, backward = (
        w for w in instruction_costs(GPU_TEXT) if w.flops or w.traffic
    )
    assert up.flops == up.unit_flops == down.flops == 2 * 131072 * 384 * 1536
    narrow, wide, weights = 131072 * 384 * 2, 131072 * 1536 * 2, 384 * 1536 * 2
    assert up.traffic == down.traffic == narrow + weights + wide  # without cuBLAS's workspace
    assert kept.traffic == 2 * narrow + 4 and kept.blocking  # the slice and where to, not the stack
    scores, stat = 512 * 12 * 256 * 256, 512 * 12 * 256 * 4
    assert forward.flops == 2 * 2 * scores * 32 and backward.flops == 5 * 2 * scores * 32 / 2
    assert forward.vector_flops == 100 * scores and backward.vector_flops == 250 * scores / 2
    assert forward.traffic == 4 * narrow + 512 * 256 * 256 * 2 + stat
    assert backward.traffic == 8 * narrow + stat
    assert [w.kernel for w in (down, forward)] == ["", "fmhaScaleBiasSoftmax"]


def test_seconds_on_a_gpu():
    """An H200: shares of the rates, the vector units in attention, the least time of a kernel."""
    found = predicted_seconds(GPU_TEXT, "NVIDIA H200")
    products = 2 * 2 * 131072 * 384 * 1536 / 989.5e12
    scores = 512 * 12 * 256 * 256
    attention = (100 + 250 / 2) * scores / 67e12
    moved = (2 * 131072 * 384 * 2 + 4) / 4.8e12 / 0.7
    assert found.work == pytest.approx(products / 0.763 + moved + attention)
    assert found.compute == pytest.approx(products + (4 + 5) * scores * 32 / 989.5e12)
    assert found.step == found.work and found.compiler is None
    small = predicted_seconds(GPU_TEXT.replace("131072", "16"), "NVIDIA H200")
    assert small.work == pytest.approx(2 * 2e-6 + moved / 2 + attention, rel=0.01)
    assert predicted_seconds(GPU_TEXT, "NVIDIA H100 PCIe") is None
