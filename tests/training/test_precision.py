"""precision="auto": bfloat16 only where the device has instructions for it."""

import pytest
import torch
from helpers import loader
from networks import images, tiny

import leenet_fx
from leenet_fx.training import precision

X86 = "processor\t: {}\nvendor_id\t: A\nflags\t\t: fpu sse avx2 avx512f{}\nbugs\t\t: spectre_v1\n\n"
ARM = "processor\t: {}\nFeatures\t: fp asimd{}\nCPU part\t: 0xd4f\n\n"


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([X86.format(0, ""), X86.format(1, "")], False),
        ([X86.format(0, " avx512_bf16"), X86.format(1, " avx512_bf16")], True),
        ([X86.format(0, " amx_bf16 amx_tile")], True),
        # Not the same as a feature with this name in it.
        ([X86.format(0, " avx512_bf16x")], False),
        ([X86.format(0, " avx512_bf16"), X86.format(1, "")], False),
        ([ARM.format(0, " bf16 i8mm")], True),
        ([ARM.format(0, " i8mm")], False),
        ([""], False),
    ],
)
def test_the_processor_names_its_instructions(tmp_path, monkeypatch, cores, expected):
    (tmp_path / "cpuinfo").write_text("".join(cores))
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    chosen = "bf16-mixed" if expected else "32-true"
    assert precision.choose_precision("cpu") == chosen


def test_a_system_without_a_description_of_its_processor_takes_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "missing")
    assert precision.choose_precision("cpu") == "32-true"
    assert precision.choose_precision("tpu") == "32-true"


@pytest.mark.parametrize("flag", ["", " avx512_bf16"])
def test_fit_trains_in_the_precision_that_the_processor_is_fast_at(tmp_path, monkeypatch, flag):
    (tmp_path / "cpuinfo").write_text(X86.format(0, flag))
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    states = []
    for given in ("auto", "bf16-mixed" if flag else "32-true"):
        ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
        leenet_fx.fit(ee, loader(32), epochs=1, precision=given)
        states.append(ee.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
