import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from accelerated import functional
from accelerated.layers.linear import Linear
from benchmarks import profile
from benchmarks.engines import ENGINES, Problem, Size
from reference.errors import InputError
from reference.layers.embedding import embed
from reference.layers.linear import linear
from tests.peers import peer

SIZE = Size(2, 96, 31, 3, 11, 3, rounds=6)
X = np.random.default_rng(1).normal(size=(5, 64, 32))
KERNEL = np.random.default_rng(2).normal(size=(32, 48))


@pytest.fixture(scope="module")
def calls():
    peer("torch")
    return {name: ENGINES[name](Problem(SIZE)) for name in ("NumPy", "Flax", "PyTorch")}


@pytest.fixture(scope="module")
def profiles(calls):
    flax = calls["Flax"]
    return {
        "NumPy": profile.numpy_profile(calls["NumPy"].step, 3),
        "Flax": profile.flax_profile(flax.step, flax.program(), 3),
        "PyTorch": profile.torch_profile(calls["PyTorch"].step, 3),
    }


@pytest.mark.parametrize("engine", ["NumPy", "Flax", "PyTorch"])
def test_every_part_of_a_step_takes_time(profiles, engine):
    wall, parts, operations = profiles[engine]
    assert tuple(parts) == profile.PARTS and parts[profile.REST] >= 0
    assert all(parts[part] > 0 for part in profile.PARTS[:-1])
    assert wall / 100 < sum(parts.values()) < 100 * wall  # all in seconds, however busy the machine
    seconds = [seconds for _, seconds, _ in operations]
    assert len(seconds) == 5 and seconds == sorted(seconds, reverse=True) and seconds[-1] > 0
    assert sum(seconds) <= sum(parts.values())
    assert json.loads(json.dumps(profiles[engine]._asdict()))["parts"] == parts


def test_a_linear_map_is_nothing_else_in_numpy():
    def step():
        y, backward = linear({"kernel": KERNEL, "bias": np.ones(48)}, X)
        backward(y)

    found = profile.numpy_profile(step, 3)
    assert only_linear_maps(found)
    counts = {name: count for name, _, count in found.operations}
    assert counts["linear"] == counts["linear backward"] == 1


def test_a_function_of_numpy_is_its_callers_time():
    """Most of what the gradient of `embed` takes here is np.argsort and np.unique."""
    ids = np.random.default_rng(3).integers(0, 1000, 100_000)
    _, backward = embed({"embedding": np.ones((1000, 1))}, ids=ids)
    found = profile.numpy_profile(lambda: backward(np.ones((100_000, 1))), 3)
    assert found.parts["embedding and loss"] > found.wall / 2


def test_a_linear_map_is_nothing_else_in_flax(calls):
    apply, params = functional(Linear(32, 48, rngs=nnx.Rngs(0)))
    compiled = jax.jit(lambda params, x: apply(params, x)).lower(params, X).compile()

    def step():
        jax.block_until_ready(compiled(params, X))

    found = profile.flax_profile(step, compiled.as_text(), 3)
    assert only_linear_maps(found)
    assert all("(linear.py)" in name for name, _, _ in found.operations)
    assert all(count == int(count) > 0 for _, _, count in found.operations)
    with pytest.raises(InputError, match="compiled_text has jit_train_call, which the step does"):
        profile.flax_profile(step, calls["Flax"].program(), 1)


def test_a_linear_map_is_nothing_else_in_pytorch():
    torch = peer("torch")
    x, kernel = torch.tensor(X), torch.tensor(KERNEL.T)
    found = profile.torch_profile(lambda: torch.nn.functional.linear(x, kernel), 3)
    assert only_linear_maps(found)
    assert {name: count for name, _, count in found.operations}["aten::linear"] == 1


def only_linear_maps(found):
    return [part for part, seconds in found.parts.items() if seconds] == ["linear maps"]


@pytest.mark.parametrize(
    "file, function, part",
    [
        ("layers/linear.py", "linear.<locals>.backward", "linear maps"),
        ("layers/activation.py", "gelu.<locals>.backward", "activation"),
        ("layers/softmax.py", "softmax.<locals>.backward", "attention"),
        ("layers/softmax.py", "log_softmax", "embedding and loss"),
        ("layers/embedding.py", "embed.<locals>.backward", "embedding and loss"),
        ("layers/embedding.py", "Embed.unembed", "linear maps"),
        ("training/schedule.py", "warmup_cosine", "optimizer"),
        ("training/loop.py", "loss_and_gradients.<locals>.part", profile.REST),
        ("layers/residual.py", "pre_norm.<locals>.backward", profile.REST),
        ("layers/block.py", "transformer_block", profile.REST),
    ],
)
def test_files_and_functions_have_their_part(file, function, part):
    assert profile.part_of(f"/somewhere/reference/{file}", function) == part


@pytest.mark.parametrize(
    "names, part",
    [
        (["aten::mm"], "linear maps"),
        (["aten::sum", "autograd::engine::evaluate_function: AddmmBackward0"], "linear maps"),
        (["aten::add", "autograd::engine::evaluate_function: AddmmBackward0"], profile.REST),
        (["aten::add_", "Optimizer.step#AdamW.step"], "optimizer"),
        (["aten::fill_", "aten::zeros", "aten::cross_entropy_loss"], "embedding and loss"),
        (["aten::mm", "aten::scaled_dot_product_attention"], "attention"),
        (["aten::add"], profile.REST),
    ],
)
def test_operators_have_the_part_of_what_calls_them(names, part):
    event = None
    for name in reversed(names):
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert profile.torch_part(event) == part


def test_a_program_is_read():
    """As XLA prints it: a fusion is of what costs most in it, and a loop is not its inside."""
    folder = profile.OURS[1]
    text = f"""HloModule jit_f, is_scheduled=true

FileNames
1 "/elsewhere/loop.py"
2 "{folder}layers/activation.py"
3 "{folder}layers/linear.py"

FunctionNames
1 "gelu"
2 "Linear.__call__"

FileLocations
1 {{file_name_id=2 function_name_id=1 line=1 end_line=1 column=1 end_column=2}}
2 {{file_name_id=3 function_name_id=2 line=1 end_line=1 column=1 end_column=2}}
3 {{file_name_id=1 function_name_id=2 line=1 end_line=1 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=2}}

%fused (p.1: f32[4,8], p.2: f32[8]) -> f32[4,8] {{
  %p.1 = f32[4,8]{{1,0}} parameter(0)
  %tanh.1 = f32[4,8]{{1,0}} tanh(%p.1), metadata={{op_name="jit(f)/tanh" stack_frame_id=3}}
  %b.1 = f32[8]{{0}} negate(%p.2), metadata={{op_name="jit(f)/neg" stack_frame_id=2}}
  ROOT %c.1 = f32[4,8]{{1,0}} bitcast(%b.1), metadata={{op_name="jit(f)/c" stack_frame_id=2}}
}}

%body (p.3: (f32[4,8], s32[])) -> (f32[4,8], s32[]) {{
  %tanh_fusion.1 = f32[4,8]{{1,0}} fusion(%p.3), kind=kLoop, calls=%fused
  %copy.1 = f32[4,8]{{1,0}} copy(%p.3)
}}

ENTRY %main (p.4: f32[4,8]) -> f32[4,8] {{
  %while.1 = (f32[4,8]{{1,0}}, s32[]) while(%p.4), condition=%other, body=%body
  ROOT %dot.1 = f32[4,8]{{1,0}} dot(%p.4), metadata={{op_name="jit(f)/dot" stack_frame_id=2}}
}}
"""
    read = profile.read_program(text)
    assert read["jit_f", "tanh_fusion.1"].source == ("activation", "activation.py")
    assert read["jit_f", "dot.1"].source == ("linear maps", "linear.py")
    assert read["jit_f", "copy.1"].source == (profile.REST, "no source")
    names = ("while.1", "tanh_fusion.1", "dot.1")
    spans = [(("jit_f", name), 0, 1) for name in names] + [(("jit_g", "add.1"), 0, 1)]
    assert profile.without_callers(spans, read) == spans[1:]
    assert profile.without_callers(spans[:1], read) == spans[:1]


def test_an_instruction_ends_where_its_own_event_says(monkeypatch):
    """On a processor; where there is a device, only what ran on that counts."""

    def event(name, start, end, **stats):
        return SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=stats.items())

    names = {"hlo_module": "jit_f", "hlo_op": "dot.1"}
    launched, late = event("dot.1", 0, 5, **names, _p=7), event("end: dot.1", 9, 9, _c=7)
    other, kernel = event("fill", 2, 3, _p=7), event("gemm_32x32", 1, 4, **names)
    host = SimpleNamespace(
        name="/host:CPU",
        lines=[SimpleNamespace(events=[launched, other]), SimpleNamespace(events=[late])],
    )
    device = SimpleNamespace(name="/device:GPU:0", lines=[SimpleNamespace(events=[kernel])])
    for planes, times in (([host], (0, 9)), ([host, device], (1, 4))):
        data = SimpleNamespace(from_file=lambda file, planes=planes: SimpleNamespace(planes=planes))
        monkeypatch.setattr(jax.profiler, "ProfileData", data)
        assert profile.read_spans("a file") == [(("jit_f", "dot.1"), *times)]


def test_those_that_run_at_once_share_the_time():
    spans = [("a", 0, 10), ("b", 4, 8), ("c", 4, 8), ("d", 5, 5), ("a", 20, 30), ("a", 30, 31)]
    seconds = profile.shared(spans)
    assert seconds == pytest.approx(
        {"a": (4 + 4 / 3 + 2 + 11) * 1e-9, "b": 4e-9 / 3, "c": 4e-9 / 3}
    )


def test_the_tables_say_where_the_time_goes(profiles, capsys):
    made = profile.Profile(0.010, dict.fromkeys(profile.PARTS, 0.001), [("a product", 0.002, 7)])
    slowed = made._replace(wall=0.005)
    Console(width=100).print(profile.table("Two engines", {"NumPy": made, "Flax": slowed}))
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        *(f"{part} 1.00 10 % 1.00 20 %" for part in profile.PARTS),
        "not in any operation 3.00 30 % 0.00 0 %",
        "the whole step 10.00 5.00",
        "took longer than the step",
        "a product 2.00 7",
    ):
        assert words in printed
    Console(width=100).print(profile.table("One size", profiles))
    printed = capsys.readouterr().out
    assert all(name in printed for found in profiles.values() for name, _, _ in found.operations)


def test_no_rounds_and_no_program_are_refused():
    for profiled in (profile.numpy_profile, partial(profile.flax_profile, compiled_text="")):
        with pytest.raises(InputError, match="rounds is 0; give a positive integer"):
            profiled(lambda: None, rounds=0)
    with pytest.raises(InputError, match="compiled_text has no program, which the step does"):
        profile.flax_profile(lambda: None, "", 1)
