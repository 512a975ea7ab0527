"""The reader of scheduled HLO: which collectives run, how often, and beside what work."""

import jax
import jax.numpy as jnp
import pytest

from inf_jax.planning.hlo import Collective, collectives

# As the compiler prints it, less layouts: one loop of 256 turns with permutes and an async
# collective fusion, an all-reduce that waits.
SCHEDULE = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,8]{1,0}}

%products (param_0: f32[8,4], param_1: f32[8,4]) -> f32[8,8] {
  %param_0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[8,4]{1,0:T(8,128)} parameter(1)
  ROOT %convolution.1 = f32[8,8]{1,0:T(8,128)} convolution(%param_0, %param_1), dim_labels=bf_oi->bf
}

%begins (param_0.1: bf16[4,4]) -> (bf16[16,4], u32[]) {
  %param_0.1 = bf16[4,4]{1,0} parameter(0)
  %all-gather.1 = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=3, dimensions={0}
  ROOT %custom-call.1 = (bf16[16,4]{1,0}, u32[]{:S(2)}) custom-call(%param_0.1, %all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%ends (param_0.2: bf16[4,4]) -> bf16[16,4] {
  %param_0.2 = bf16[4,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,4]{1,0} all-gather(%param_0.2), channel_id=3, dimensions={0}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%body (arg: (s32[], f32[8,4], f32[8,4])) -> (s32[], f32[8,4], f32[8,4]) {
  %arg = (s32[]{:T(128)}, f32[8,4]{1,0}, /*index=2*/f32[8,4]{1,0}) parameter(0)
  %mine = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %theirs = f32[8,4]{1,0} get-tuple-element(%arg), index=2
  %collective-permute-start = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%theirs), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %tile = f32[8,8]{1,0} fusion(%mine, %theirs), kind=kOutput, calls=%products
  %collective-permute-done = f32[8,4]{1,0} collective-permute-done(%collective-permute-start)
  %ppermute.2 = f32[8]{0} collective-permute(%small), channel_id=2, source_target_pairs={}
  %turn = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %tuple.1 = (s32[], f32[8,4], f32[8,4]) tuple(%turn, %mine, %collective-permute-done)
}

%condition (arg.1: (s32[], f32[8,4], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) parameter(0)
  %turns = s32[]{:T(128)} constant(256)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%turn.1, %turns), direction=LT
}

ENTRY %main (q: f32[8,4], p: bf16[4,4]) -> f32[8,8] {
  %q = f32[8,4]{1,0} parameter(0)
  %p = bf16[4,4]{1,0} parameter(1)
  %async-collective-start = (bf16[16,4]{1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%begins
  %between = f32[8,8]{1,0} fusion(%q, %q), kind=kOutput, calls=%products
  %async-collective-done = bf16[16,4]{1,0} fusion(%p), kind=kCustom, calls=%ends
  %async-collective-start.1 = (bf16[16,4]{1,0}, u32[]{:S(2)}) fusion(%p), calls=%begins
  %async-collective-done.1 = bf16[16,4]{1,0} fusion(%p), kind=kCustom, calls=%ends
  %start = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(%zero, %q, %q)
  %while.1 = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %early = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-reduce-start(%between), channel_id=5, to_apply=%add
  %late = f32[8,8]{1,0} all-reduce-done(%early)
  ROOT %all-reduce.7 = f32[8,8]{1,0} all-reduce(%late), channel_id=6, to_apply=%add
}
"""


def test_a_sum_and_its_slices_in_one_fusion_are_a_reduce_scatter():
    program = """\
HloModule jit_step

%all-reduce-scatter (input: f32[4,30,16]) -> f32[8,16] {
  %input = f32[4,30,16]{2,1,0} parameter(0)
  %pad = f32[32,64]{1,0} bitcast(%input)
  %all-reduce.1 = f32[32,64]{1,0} all-reduce(%pad), channel_id=5, replica_groups={{0,1,2,3}}
  ROOT %slice = f32[8,16]{1,0} dynamic-slice(%all-reduce.1, %at), dynamic_slice_sizes={8,16}
}

ENTRY %main (p: f32[4,30,16]) -> f32[8,16] {
  %p = f32[4,30,16]{2,1,0} parameter(0)
  ROOT %fusion.1 = f32[8,16]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter
}
"""
    (found,) = collectives(program)
    assert found == Collective("reduce-scatter", 1, 8 * 16 * 4, blocking=True, overlapped=False)
    assert found.group == 4


def test_schedule():
    expected = [
        Collective("all-gather", 1, 128, blocking=False, overlapped=True),
        Collective("all-gather", 1, 128, blocking=False, overlapped=False),  # of the same channel
        Collective("collective-permute", 256, 128, blocking=False, overlapped=True),
        Collective("collective-permute", 256, 32, blocking=True, overlapped=False),
        Collective("all-reduce", 1, 256, blocking=False, overlapped=False),  # nothing in between
        Collective("all-reduce", 1, 256, blocking=True, overlapped=False),
    ]
    assert collectives(SCHEDULE) == expected
    # any work on larger arrays will do, on smaller ones not
    vectors = SCHEDULE.replace("convolution(", "add(")
    assert collectives(vectors) == expected
    small = collectives(vectors.replace("f32[8,8]", "f32[4,4]"))
    assert [c.overlapped for c in small] == [False] * 6
    # the product moved past the end of the permute: nothing runs beside it any more
    lines = SCHEDULE.splitlines(keepends=True)
    tile = next(line for line in lines if line.startswith("  %tile"))
    lines.remove(tile)
    lines.insert(next(i for i, line in enumerate(lines) if "%ppermute.2" in line), tile)
    expected[2] = Collective("collective-permute", 256, 128, blocking=False, overlapped=False)
    assert collectives("".join(lines)) == expected
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing")


def test_schedule_of_this_compiler():
    """The reader takes what the compiler prints here: a ring of 8 in a loop of 5 turns."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def local(x):
        def turn(y, _):
            return jax.lax.ppermute(y, "d", ring) @ jnp.eye(4), None

        return jax.lax.psum(jax.lax.scan(turn, x, None, length=5)[0], "d")

    spec = jax.sharding.PartitionSpec("d")
    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32)
    found = collectives(jax.jit(step).lower(x).compile().as_text())
    assert [(c.kind, c.times, c.size) for c in found] == [
        ("collective-permute", 5, 32),
        ("all-reduce", 1, 32),
    ]
