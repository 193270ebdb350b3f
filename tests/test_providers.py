"""Execution providers: names, documented options, and the messages about them."""

import pytest

from edgekd.providers import PROVIDERS, option_error


def test_the_providers_are_those_edgekd_documents():
    assert sorted(PROVIDERS) == [
        "CPUExecutionProvider",
        "CUDAExecutionProvider",
        "CoreMLExecutionProvider",
        "DmlExecutionProvider",
        "OpenVINOExecutionProvider",
        "QNNExecutionProvider",
        "TensorrtExecutionProvider",
        "WebGpuExecutionProvider",
        "XnnpackExecutionProvider",
        "wasm",
    ]


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_says_how_to_get_it_and_where_it_is_documented(name):
    info = PROVIDERS[name]
    assert "install" in info.get_it or "build" in info.get_it
    assert "\n" not in info.get_it
    assert info.documentation.startswith("https://onnxruntime.ai/docs/")
    assert info.documentation.endswith(".html")
    assert all(option and option.replace("_", "").isalnum() for option in info.options)


@pytest.mark.parametrize("name", ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "DmlExecutionProvider"])
def test_wheels_that_exclude_the_plain_one_say_so(name):
    assert "exclude one another" in PROVIDERS[name].get_it
    assert "pip uninstall -y onnxruntime && pip install " in PROVIDERS[name].get_it


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "cuda"),
        ("TensorrtExecutionProvider", "cuda"),
        ("OpenVINOExecutionProvider", "openvino"),
    ],
)
def test_get_it_names_the_extra(name, extra):
    assert f'pip install "edgekd[{extra}]"' in PROVIDERS[name].get_it


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("OpenVINOExecutionProvider", "device_type"),
        ("OpenVINOExecutionProvider", "load_config"),
        ("CUDAExecutionProvider", "cudnn_conv_algo_search"),
        ("TensorrtExecutionProvider", "trt_fp16_enable"),
        ("TensorrtExecutionProvider", "trt_engine_cache_path"),
        ("QNNExecutionProvider", "backend_type"),
        ("QNNExecutionProvider", "offload_graph_io_quantization"),
        ("CoreMLExecutionProvider", "ModelFormat"),
        ("XnnpackExecutionProvider", "intra_op_num_threads"),
        ("DmlExecutionProvider", "device_id"),
        ("WebGpuExecutionProvider", "preferredLayout"),
    ],
)
def test_documented_options_are_accepted_and_only_by_their_provider(name, option):
    assert option_error(name, {option: "1"}) == ""
    assert option_error("wasm", {option: "1"}) == f"wasm documents no option {option!r}; Known: none."


def test_an_unknown_option_is_named_with_the_nearest_one():
    message = option_error("CUDAExecutionProvider", {"device_id": "0", "gpu_memory_limit": "1"})
    assert message.startswith(
        "CUDAExecutionProvider documents no option 'gpu_memory_limit'; did you mean 'gpu_mem_limit'? Known: "
    )


def test_the_cpu_provider_takes_no_options_because_onnxruntime_would_ignore_them():
    assert option_error("CPUExecutionProvider", {}) == ""
    assert option_error("CPUExecutionProvider", {"use_arena": "0"}) == (
        "CPUExecutionProvider documents no option 'use_arena'; Known: none."
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CudaExecutionProvider", "CUDAExecutionProvider"),
        ("OpenVinoExecutionProvider", "OpenVINOExecutionProvider"),
        ("WasmExecutionProvider", "DmlExecutionProvider"),
    ],
)
def test_an_unknown_provider_is_named_with_the_nearest_one(name, nearest):
    message = option_error(name, {})
    assert message.startswith(f"must name a known execution provider, got {name!r}; did you mean ")
    assert repr(nearest) in message.partition("Known: ")[0]
    assert "wasm" in message.partition("Known: ")[2]
