"""Targets: the bundled files, what a mistake in one says, and which machine is which target."""

import dataclasses
import re
from pathlib import Path

import pytest

from edgekd.devices import host
from edgekd.devices.host import parse_cpuinfo
from edgekd.errors import ConfigError, UnavailableError
from edgekd.machine import Machine
from edgekd.providers import PROVIDERS
from edgekd.spec import bundled_names, locate
from edgekd.target import GENTLE, SCHEMES, Quantization, Target, load_target

BUNDLED = [
    "coreml",
    "cpu-arm",
    "cpu-arm-dotprod",
    "cpu-x86",
    "cpu-x86-avx2",
    "cuda",
    "openvino-cpu",
    "qnn-npu",
    "tensorrt",
    "wasm",
]

MINIMAL = """\
title = "a board"
[hardware]
architecture = "aarch64"
[provider]
name = "CPUExecutionProvider"
"""

X86_CPUINFO = """\
processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD EPYC 9B45
flags		: fpu sse2 avx2 avx512f avx512_vnni

processor	: 1
model name	: AMD EPYC 9B45
flags		: fpu sse2 avx2 avx512f avx512_vnni
"""

PI4_CPUINFO = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

processor	: 1
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU part	: 0xd08

Hardware	: BCM2835
Revision	: c03115
Model		: Raspberry Pi 4 Model B Rev 1.5
"""

VNNI_PC = Machine("x86_64", "a PC", frozenset({"sse2", "avx2", "avx512_vnni"}), "")
AVX2_PC = Machine("x86_64", "an older PC", frozenset({"sse2", "avx2"}), "")
OLD_PC = Machine("x86_64", "a very old PC", frozenset({"sse2"}), "")
PI4 = Machine("aarch64", "", frozenset({"fp", "asimd", "crc32"}), "0xd08")
PI5 = Machine("aarch64", "", frozenset({"fp", "asimd", "crc32", "asimddp"}), "0xd0b")
MAC = Machine("aarch64", "arm", frozenset(), "", "Darwin")


def load(tmp_path: Path, text: str) -> Target:
    path = tmp_path / "board.toml"
    path.write_text(text, encoding="utf-8")
    return load_target(str(path))


def refusal(tmp_path: Path, text: str) -> str:
    """The one-line message about the target file `text`; it must start with the path, which is cut off."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    prefix = f"{tmp_path / 'board.toml'}: "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


# --- the bundled files -----------------------------------------------------------------------------------


def test_the_bundled_targets_are_these():
    assert bundled_names("targets") == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_target_loads_and_needs_only_what_its_provider_documents(name):
    target = load_target(name)
    assert target.name == name
    assert target.file.endswith(f"{name}.toml")
    assert target.title
    assert target.about.strip()
    assert set(target.provider.options) <= PROVIDERS[target.provider.name].options
    assert (target.device, target.python, target.accuracy_on) == ("", "", "device")
    assert target.environment == {"openvino-cpu": "openvino", "cuda": "cuda", "wasm": "wasm"}.get(name, "")
    assert target.opset.min <= 20 <= target.opset.max


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_target_is_commented_for_whoever_copies_it(name):
    lines = locate("targets", name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert lines.index(next(line for line in lines if line.startswith("title = "))) > 0
    keys = [line for line in lines if re.match(r"[a-z0-9_A-Z]+ = ", line)]
    commented = [line for line in lines if "# " in line]
    assert len(commented) >= len(keys) / 2 > 5


def test_what_the_bundled_targets_say_of_int8():
    def scheme(name: str) -> tuple[str, str, bool]:
        quantization = load_target(name).quantization
        return quantization.activation, quantization.weight, quantization.reduce_range

    assert scheme("cpu-x86") == ("uint8", "int8", False)
    assert scheme("cpu-x86-avx2") == ("uint8", "int8", True)
    assert scheme("cpu-arm") == scheme("cpu-arm-dotprod") == ("uint8", "int8", False)
    assert scheme("tensorrt") == ("int8", "int8", False)
    assert load_target("tensorrt").quantization.symmetric_activation
    assert scheme("qnn-npu") == ("uint8", "uint8", False)
    assert not load_target("qnn-npu").quantization.per_channel
    assert [name for name in BUNDLED if "int8" not in load_target(name).precisions] == ["coreml", "cuda"]


@pytest.mark.parametrize("wide", ['activation = "uint16"', 'schemes = ["a16w8"]'])
def test_activations_of_16_bits_are_for_npus(tmp_path, wide):
    text = locate("targets", "coreml").read_text(encoding="utf-8") + f"\n[quantization]\n{wide}\n"
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"16-bit activations \(a16w8\) are for QNNExecutionProvider; CoreML"):
        load_target(str(tmp_path / "mine.toml"))
    assert load_target("qnn-npu").quantization.schemes == ("a16w8",)


def test_activations_of_16_bits_have_one_form(tmp_path):
    text = locate("targets", "qnn-npu").read_text(encoding="utf-8")
    start = text.index("[quantization]\n") + len("[quantization]\n")
    quantization = 'activation = "uint16"\nforms = ["qdq", "qoperator"]\n'
    (tmp_path / "mine.toml").write_text(text[:start] + quantization, encoding="utf-8")
    with pytest.raises(ConfigError, match=r'with activation = "uint16", form must be "qdq", and so must all forms'):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", GENTLE)
def test_a_gentle_scheme_takes_no_corrections_and_forms_from_others(name):
    others = Quantization(equalize=True, correct_bias=True, forms=("qoperator",))
    scheme = dataclasses.replace(others, **SCHEMES[name])
    assert not scheme.equalize
    assert not scheme.correct_bias
    assert scheme.form == "qdq"


@pytest.mark.parametrize("name", ["cpu-arm", "cpu-arm-dotprod"])
def test_the_references_of_a_board_can_be_looked_up(name):
    references = load_target(name).reference
    assert {(reference.network, reference.kernel_class) for reference in references} == {
        ("resnet18", "dense"),
        ("mobilenet_v2", "depthwise"),
    }
    for reference in references:
        assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+", reference.source)
        assert "\n" not in reference.note
        if reference.ort_version == "unknown":
            assert "newest release" in reference.note
        if reference.threads != load_target(name).session.intra_op_threads:
            assert "threads" in reference.note


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cpu-amr", "cpu-arm"), ("openvino", "openvino-cpu"), ("tensort", "tensorrt"), ("cpu_x86", "cpu-x86")],
)
def test_an_unknown_name_is_told_with_the_nearest_one(name, nearest):
    with pytest.raises(ConfigError) as caught:
        load_target(name)
    message = str(caught.value)
    assert message.startswith(f"unknown target {name!r}; did you mean ")
    assert repr(nearest) in message.partition("Known: ")[0]
    assert message.endswith(f"Known: {', '.join(BUNDLED)}.")


def test_a_path_without_a_file_is_told(tmp_path):
    missing = tmp_path / "nothing.toml"
    with pytest.raises(ConfigError) as caught:
        load_target(str(missing))
    assert str(caught.value) == f"target {str(missing)!r}: no such file; give a TOML file or a bundled name"


def test_the_smallest_target_loads_and_is_named_by_its_file(tmp_path):
    target = load(tmp_path, MINIMAL)
    assert (target.name, target.file) == ("board", str(tmp_path / "board.toml"))
    assert target.precisions == ("fp32", "int8")
    assert target.session.intra_op_threads == 1
    assert target.reference == ()


def changed(old: str, new: str) -> str:
    assert MINIMAL.count(old) == 1
    return MINIMAL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, at each level
        (
            "titel = 'x'\n" + MINIMAL,
            re.compile(r"titel: unknown key; did you mean 'title'\? Known: about, accuracy_on, device, .+, title\.$"),
        ),
        (
            changed("architecture", "arch"),
            "hardware.arch: unknown key; did you mean 'architecture'? "
            "Known: architecture, cpu_part, lacks, requires, system. (and 1 more)",
        ),
        (
            MINIMAL + "[session]\nintra_op_thread = 1\n",
            "session.intra_op_thread: unknown key; did you mean 'intra_op_threads' or 'inter_op_threads'? "
            "Known: affinity, allow_spinning, arena, batch_sizes, binding, graph_level, inter_op_threads, "
            "intra_op_threads.",
        ),
        ("name = 'x'\n" + MINIMAL, "name: unknown key; a target is named by its file"),
        ("file = 'x'\n" + MINIMAL, "file: unknown key; a target is named by its file"),
        # a key that is missing
        (changed('title = "a board"\n', ""), "title: is missing; add it"),
        (changed('architecture = "aarch64"\n', ""), "hardware.architecture: is missing; add it"),
        # wrong types
        (changed('"a board"', "7"), "title: got 7; it should be a valid string"),
        (
            MINIMAL + "[session]\nintra_op_threads = '4'\n",
            'session.intra_op_threads: got "4"; it should be a valid integer',
        ),
        (
            MINIMAL + "[provider.options]\nuse_arena = 1\n",
            "provider.options.use_arena: got 1; it should be a valid string",
        ),
        # values out of range
        (
            MINIMAL + "[session]\nintra_op_threads = 0\n",
            "session.intra_op_threads: got 0; it should be greater than or equal to 1",
        ),
        (
            MINIMAL + "[session]\nbinding = 'bound'\n",
            "session.binding: got \"bound\"; it should be 'run' or 'io'",
        ),
        (
            MINIMAL + "[session]\nbatch_sizes = [8, 1]\n",
            "session.batch_sizes.1: got 1; it should be greater than or equal to 2",
        ),
        (MINIMAL + "[session]\narena = 'no'\n", 'session.arena: got "no"; it should be a valid boolean'),
        (MINIMAL + "[limits]\nsize_kb = -3.5\n", "limits.size_kb: got -3.5; it should be greater than 0"),
        (
            changed('"aarch64"', '"arm7"'),
            "hardware.architecture: got \"arm7\"; it should be 'x86_64', 'aarch64', 'arm64' or 'wasm32'",
        ),
        (
            "precisions = ['int8', 'int4']\n" + MINIMAL,
            "precisions.1: got \"int4\"; it should be 'fp32', 'fp16' or 'int8'",
        ),
        # providers and their options
        (
            changed('"CPUExecutionProvider"', '"OpenVinoExecutionProvider"\noptions = {device_type = "CPU"}'),
            re.compile(
                r"provider: must name a known execution provider, got 'OpenVinoExecutionProvider'; "
                r"did you mean 'OpenVINOExecutionProvider'"
            ),
        ),
        (
            changed('"CPUExecutionProvider"', '"CUDAExecutionProvider"\noptions = {devise_id = "0"}'),
            re.compile(
                r"provider: CUDAExecutionProvider documents no option 'devise_id'; "
                r"did you mean 'device_id'"
            ),
        ),
        # more than any device has
        (
            MINIMAL + "[session]\nintra_op_threads = 1_000_000_000\n",
            "session.intra_op_threads: got 1000000000; it should be less than or equal to 1024",
        ),
        (
            MINIMAL + "[session]\ninter_op_threads = 1025\n",
            "session.inter_op_threads: got 1025; it should be less than or equal to 1024",
        ),
        (
            MINIMAL + "[session]\naffinity = [0, 8192]\n",
            "session.affinity.1: got 8192; it should be less than 8192",
        ),
        (
            MINIMAL + "[session]\nbatch_sizes = [65537]\n",
            "session.batch_sizes.0: got 65537; it should be less than or equal to 65536",
        ),
        (
            MINIMAL + "[quantization]\ncalibration_images = 1_000_001\n",
            "quantization.calibration_images: got 1000001; it should be less than or equal to 1000000",
        ),
        # long texts are cut
        (
            changed('"CPUExecutionProvider"', f'"{"P" * 100_000}"'),
            re.compile(r"provider: must name a known execution provider, got 'P{58}…; Known: .{1,400}$"),
        ),
        (
            changed('"CPUExecutionProvider"', f'"CPUExecutionProvider"\noptions = {{{"o" * 150} = "0"}}'),
            re.compile(r"provider: CPUExecutionProvider documents no option 'o{58}…; Known: "),
        ),
        # rules between keys
        (
            MINIMAL + "[opset]\nmin = 18\nmax = 19\nexport = 20\n",
            re.compile(r"opset: must hold min <= export <= max, got 18, 20, 19$"),
        ),
    ],
)
def test_a_mistake_is_told_with_key_value_rule_and_nearest_name(tmp_path, text, message):
    told = refusal(tmp_path, text)
    if isinstance(message, re.Pattern):
        assert message.match(told), told
    else:
        assert told == message


def test_a_syntax_error_is_told_with_its_line(tmp_path):
    told = refusal(tmp_path, MINIMAL + "oops = [1, 2\n")
    assert told.startswith("not valid TOML: ")
    assert "line 6" in refusal(tmp_path, MINIMAL + "oops == 1\n")


REFERENCE = """\
[[reference]]
network = "resnet18"
precision = "fp32"
kernel_class = "dense"
latency_ms = 12.5
threads = 1
ort_version = "1.20.1"
source = "https://example.org/figures.html"
"""


def test_a_reference_with_a_source_loads(tmp_path):
    (reference,) = load(tmp_path, MINIMAL + REFERENCE).reference
    assert (reference.network, reference.input_size, reference.latency_ms) == ("resnet18", 224, 12.5)
    assert reference.source == "https://example.org/figures.html"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "my own measurement",
        "http://example.org/figures.html",
        "https://localhost/x",
        "https://example.org",
    ],
)
def test_a_reference_without_an_https_source_is_refused(tmp_path, source):
    text = MINIMAL + REFERENCE.replace("https://example.org/figures.html", source)
    told = refusal(tmp_path, text)
    assert (
        told == f"reference.0.source: should be the https address of the page that publishes the figure, got {source!r}"
    )


def test_a_reference_needs_its_source_and_a_known_network(tmp_path):
    without = MINIMAL + REFERENCE.replace('source = "https://example.org/figures.html"\n', "")
    assert refusal(tmp_path, without) == "reference.0.source: is missing; add it"
    unknown = MINIMAL + REFERENCE.replace("resnet18", "resnet9000")
    assert refusal(tmp_path, unknown).startswith("reference.0.network: got \"resnet9000\"; it should be 'resnet18'")
    slow = MINIMAL + REFERENCE.replace("12.5", "0")
    assert refusal(tmp_path, slow) == "reference.0.latency_ms: got 0; it should be greater than 0"


# --- machines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "machine", "differences"),
    [
        ("cpu-x86", VNNI_PC, []),
        ("cpu-x86", OLD_PC, ["this CPU lacks avx2"]),
        ("cpu-x86", PI4, ["this machine is aarch64, the target x86_64"]),
        ("cpu-x86-avx2", AVX2_PC, []),
        ("cpu-x86-avx2", VNNI_PC, ["this CPU has avx512_vnni, the target's has not"]),
        ("cpu-arm", VNNI_PC, ["this machine is x86_64, the target aarch64"]),
        ("cpu-arm", PI4, []),
        (
            "cpu-arm",
            PI5,
            ["this CPU has asimddp, the target's has not", "this CPU's part is 0xd0b, the target's 0xd08"],
        ),
        ("cpu-arm", MAC, ["this CPU lacks asimd", "this CPU's part is unknown, the target's 0xd08"]),
        ("cpu-arm-dotprod", PI5, []),
        (
            "cpu-arm-dotprod",
            PI4,
            ["this CPU lacks asimddp", "this CPU's part is 0xd08, the target's 0xd0b"],
        ),
        ("coreml", MAC, []),
        ("coreml", VNNI_PC, ["this machine is x86_64, the target arm64"]),
        ("wasm", VNNI_PC, []),  # a browser or Node runs on any CPU
        ("wasm", MAC, []),
    ],
)
def test_a_machine_is_the_target_only_without_differences(name, machine, differences):
    target = load_target(name)
    assert target.differences(machine) == differences
    assert target.measurable_on(machine) is (differences == [])


def test_a_provider_that_is_there_is_enough():
    load_target("cpu-arm").require_provider(["AzureExecutionProvider", "CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("name", "get_it"),
    [
        ("cuda", "edgekd doctor --install cuda"),
        ("openvino-cpu", "edgekd doctor --install openvino-cpu"),
        ("tensorrt", "TensorRT 10 libraries"),
        ("qnn-npu", "pip install onnxruntime-qnn"),
        ("wasm", "edgekd doctor --install wasm"),
    ],
)
def test_a_missing_provider_is_told_with_the_command_that_brings_it(name, get_it):
    target = load_target(name)
    with pytest.raises(UnavailableError) as caught:
        target.require_provider(["AzureExecutionProvider", "CPUExecutionProvider"])
    message = str(caught.value)
    assert message.startswith(
        f"target {name}: unavailable, because this onnxruntime offers AzureExecutionProvider, "
        f"CPUExecutionProvider and the target needs {target.provider.name}; "
    )
    assert get_it in message


def test_no_provider_at_all_is_told_too():
    with pytest.raises(UnavailableError, match=r'offers no provider and .+ pip install "edgekd\[cpu\]"$'):
        load_target("cpu-x86").require_provider([])


def test_without_an_environment_the_providers_own_way_is_told(tmp_path):
    text = changed('"CPUExecutionProvider"', '"OpenVINOExecutionProvider"')
    with pytest.raises(UnavailableError, match=r'pip install "edgekd\[openvino\]"'):
        load(tmp_path, text).require_provider(["CPUExecutionProvider"])
    with pytest.raises(UnavailableError, match=r"; edgekd doctor --install .+/board\.toml$"):
        load(tmp_path, 'environment = "openvino"\n' + text).require_provider(["CPUExecutionProvider"])


def test_a_target_names_the_device_on_which_it_is_measured(tmp_path):
    text = 'device = "ssh://pi@board"\npython = "/opt/py/bin/python"\naccuracy_on = "host"\n' + MINIMAL
    target = load(tmp_path, text)
    assert (target.device, target.python, target.accuracy_on) == ("ssh://pi@board", "/opt/py/bin/python", "host")


def test_a_session_is_read_as_it_is_written(tmp_path):
    session = load(
        tmp_path, MINIMAL + "[session]\nbinding = 'io'\narena = false\nbatch_sizes = [4, 8]\naffinity = [0]\n"
    ).session
    assert (session.binding, session.arena, session.batch_sizes, session.affinity) == ("io", False, (4, 8), (0,))


@pytest.mark.parametrize(
    ("name", "machine", "said"),
    [
        ("cpu-x86", AVX2_PC, True),
        ("cpu-x86", VNNI_PC, False),
        ("cpu-x86-avx2", AVX2_PC, False),  # 7-bit weights
        ("cpu-arm", AVX2_PC, False),  # not measured here
        ("wasm", AVX2_PC, False),  # kernels of its own
    ],
)
def test_saturating_arithmetic_is_told(name, machine, said):
    assert any("can saturate" in line for line in load_target(name).remarks(machine)) is said


def test_cpuinfo_of_a_pc():
    model, features, part = parse_cpuinfo(X86_CPUINFO)
    assert model == "AMD EPYC 9B45"
    assert features == {"fpu", "sse2", "avx2", "avx512f", "avx512_vnni"}
    assert part == ""


def test_cpuinfo_of_a_raspberry_pi_4():
    model, features, part = parse_cpuinfo(PI4_CPUINFO)
    assert model == ""
    assert features == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert part == "0xd08"


def test_cpuinfo_of_mixed_cores_is_that_of_the_first():
    two_kinds = "Features : asimd asimddp\nCPU part : 0xd05\n\nFeatures : asimd\nCPU part : 0xd0b\n"
    assert parse_cpuinfo(two_kinds) == ("", frozenset({"asimd", "asimddp"}), "0xd05")


def test_cpuinfo_makes_a_pi_4_the_target_cpu_arm():
    _, features, part = parse_cpuinfo(PI4_CPUINFO)
    board = Machine("aarch64", "", features, part)
    assert load_target("cpu-arm").measurable_on(board)
    assert not load_target("cpu-arm-dotprod").measurable_on(board)


@pytest.mark.parametrize(("system", "architecture"), [("AMD64", "x86_64"), ("arm64", "aarch64")])
def test_other_systems_names_of_an_architecture_are_understood(monkeypatch, system, architecture):
    monkeypatch.setattr("platform.machine", lambda: system)
    assert host.machine.__wrapped__().architecture == architecture


def test_no_cpuinfo_claims_nothing():
    assert parse_cpuinfo("") == ("", frozenset(), "")
