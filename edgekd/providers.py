"""ONNX Runtime's execution providers: the options each documents and how to get it.

The option names are those of the provider pages named below, each found again in the shipped parser
(onnxruntime 1.31; OpenVINO and DirectML 1.24, QNN 2.7; not XNNPACK, which no wheel has). Options that take
a pointer are left out, because a TOML file cannot contain a pointer. ONNX Runtime does not refuse an unknown
option: it prints an error and continues with the CPU, or (CPU provider) prints nothing. Therefore edgekd checks
the options first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgekd.errors import did_you_mean, shown

__all__ = ["PROVIDERS", "ProviderInfo", "option_error"]

_PAGES = "https://onnxruntime.ai/docs/execution-providers"


@dataclass(frozen=True)
class ProviderInfo:
    """Information about a provider that is available without loading it."""

    options: frozenset[str]
    get_it: str
    """The command that installs it, or the place where it is available."""
    documentation: str


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROVIDERS = {
    # Every wheel has it. It takes no options from Python: threads and arena are session options.
    "CPUExecutionProvider": ProviderInfo(
        options=frozenset(),
        get_it='pip install "edgekd[cpu]"',
        documentation="https://onnxruntime.ai/docs/get-started/with-python.html",
    ),
    # The second line of options is deprecated since 1.23 in favour of load_config, a string of JSON.
    "OpenVINOExecutionProvider": ProviderInfo(
        options=_names(
            """device_type load_config disable_dynamic_shapes reshape_input layout
            precision num_of_threads num_streams cache_dir enable_qdq_optimizer model_priority"""
        ),
        get_it="the onnxruntime wheels exclude one another: "
        'pip uninstall -y onnxruntime && pip install "edgekd[openvino]"',
        documentation=f"{_PAGES}/OpenVINO-ExecutionProvider.html",
    ),
    "CUDAExecutionProvider": ProviderInfo(
        options=_names(
            """device_id gpu_mem_limit arena_extend_strategy do_copy_in_default_stream
            cudnn_conv_algo_search cudnn_conv_use_max_workspace cudnn_conv1d_pad_to_nc1d
            enable_cuda_graph enable_skip_layer_norm_strict_mode prefer_nhwc use_tf32
            use_ep_level_unified_stream"""
        ),
        get_it="the onnxruntime wheels exclude one another: "
        'pip uninstall -y onnxruntime && pip install "edgekd[cuda]" "onnxruntime-gpu[cuda,cudnn]"',
        documentation=f"{_PAGES}/CUDA-ExecutionProvider.html",
    ),
    # In the same wheel as CUDA; it loads libnvinfer.so.10 and libnvonnxparser.so.10.
    "TensorrtExecutionProvider": ProviderInfo(
        options=_names(
            """device_id trt_max_partition_iterations trt_min_subgraph_size trt_max_workspace_size
            trt_fp16_enable trt_bf16_enable trt_int8_enable trt_int8_calibration_table_name
            trt_int8_use_native_calibration_table trt_dla_enable trt_dla_core trt_dump_subgraphs
            trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix
            trt_engine_decryption_enable trt_engine_decryption_lib_path trt_engine_hw_compatible
            trt_force_sequential_engine_build trt_context_memory_sharing_enable
            trt_layer_norm_fp32_fallback trt_timing_cache_enable trt_timing_cache_path
            trt_force_timing_cache trt_detailed_build_log trt_build_heuristics_enable
            trt_sparsity_enable trt_builder_optimization_level trt_auxiliary_streams trt_tactic_sources
            trt_extra_plugin_lib_paths trt_profile_min_shapes trt_profile_max_shapes
            trt_profile_opt_shapes trt_cuda_graph_enable trt_dump_ep_context_model
            trt_ep_context_file_path trt_ep_context_embed_mode trt_weight_stripped_engine_enable
            trt_onnx_model_folder_path trt_op_types_to_exclude trt_preview_features
            trt_load_user_initializer"""
        ),
        get_it="the onnxruntime wheels exclude one another: pip uninstall -y onnxruntime && "
        'pip install "edgekd[cuda]" "onnxruntime-gpu[cuda,cudnn]", and NVIDIA\'s TensorRT 10 libraries',
        documentation=f"{_PAGES}/TensorRT-ExecutionProvider.html",
    ),
    # A plugin: it is installed beside onnxruntime and registered at run time.
    "QNNExecutionProvider": ProviderInfo(
        options=_names(
            """backend_type backend_path profiling_level profiling_file_path
            rpc_control_latency vtcm_mb enable_vtcm_backup_buffer_sharing htp_performance_mode
            qnn_saver_path qnn_context_priority htp_graph_finalization_optimization_mode soc_model
            htp_arch device_id enable_htp_fp16_precision enable_htp_spill_fill_buffer
            offload_graph_io_quantization enable_htp_shared_memory_allocator op_packages
            dump_json_qnn_graph json_qnn_graph_dir dump_qnn_ir_dlc dump_qnn_ir_dlc_dir
            qnn_ir_backend_path skip_qnn_version_check"""
        ),
        get_it="on a Qualcomm device: pip install onnxruntime-qnn (a plugin, beside onnxruntime itself)",
        documentation=f"{_PAGES}/QNN-ExecutionProvider.html",
    ),
    "CoreMLExecutionProvider": ProviderInfo(
        options=_names(
            """MLComputeUnits ModelFormat RequireStaticInputShapes EnableOnSubgraphs
            SpecializationStrategy ProfileComputePlan AllowLowPrecisionAccumulationOnGPU
            ModelCacheDirectory"""
        ),
        get_it='pip install "edgekd[cpu]" on a Mac: the macOS wheel of onnxruntime has it',
        documentation=f"{_PAGES}/CoreML-ExecutionProvider.html",
    ),
    "XnnpackExecutionProvider": ProviderInfo(
        options=_names("intra_op_num_threads"),
        get_it="no Python wheel has it: build onnxruntime with --use_xnnpack, or take onnxruntime-android",
        documentation=f"{_PAGES}/Xnnpack-ExecutionProvider.html",
    ),
    "DmlExecutionProvider": ProviderInfo(
        options=_names("device_id performance_preference device_filter disable_metacommands"),
        get_it="on Windows, the onnxruntime wheels exclude one another: "
        "pip uninstall -y onnxruntime && pip install onnxruntime-directml",
        documentation=f"{_PAGES}/DirectML-ExecutionProvider.html",
    ),
    # A plugin, like QNN; the same name stands for the `webgpu` backend of onnxruntime-web.
    "WebGpuExecutionProvider": ProviderInfo(
        options=_names(
            """preferredLayout enableGraphCapture enableInt64 multiRotaryCacheConcatOffset
            forceCpuNodeNames enablePIXCapture deviceId dawnBackendType powerPreference preserveDevice
            validationMode maxStorageBufferBindingSize storageBufferCacheMode uniformBufferCacheMode
            queryResolveBufferCacheMode defaultBufferCacheMode"""
        ),
        get_it="pip install onnxruntime-ep-webgpu (a plugin, beside onnxruntime itself)",
        documentation=f"{_PAGES}/WebGPU-ExecutionProvider.html",
    ),
    # onnxruntime-web has no WasmExecutionProvider: its backend is called `wasm`, and inside it runs the CPU
    # provider compiled to WebAssembly. It takes no options; threads are set by env.wasm.numThreads.
    "wasm": ProviderInfo(
        options=frozenset(),
        get_it="it runs in a browser or Node, not in Python: npm install onnxruntime-web",
        documentation="https://onnxruntime.ai/docs/tutorials/web/env-flags-and-session-options.html",
    ),
}


def option_error(provider: str, options: Mapping[str, str]) -> str:
    """Describe what is wrong with a provider's name or options; empty if nothing is wrong."""
    if provider not in PROVIDERS:
        return f"must name a known execution provider, got {shown(provider)}; {did_you_mean(provider, PROVIDERS)}"
    known = PROVIDERS[provider].options
    for option in options:
        if option not in known:
            return f"{provider} documents no option {shown(option)}; {did_you_mean(option, known)}"
    return ""
