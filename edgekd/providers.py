"""ONNX Runtime's execution providers: the options each documents and how to get it.

The option names are those of the provider pages under https://onnxruntime.ai/docs/execution-providers/.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgekd.errors import did_you_mean

__all__ = ["PROVIDERS", "ProviderInfo", "option_error"]


@dataclass(frozen=True)
class ProviderInfo:
    """What edgekd knows of a provider without loading it."""

    options: frozenset[str]
    get_it: str
    """The command, or the place, that brings it."""
    documentation: str


PROVIDERS = {
    "CPUExecutionProvider": ProviderInfo(
        options=frozenset({"use_arena"}),
        get_it="pip install onnxruntime",
        documentation="https://onnxruntime.ai/docs/get-started/with-python.html",
    ),
}


def option_error(provider: str, options: Mapping[str, str]) -> str:
    """What is wrong with a provider's name or options; empty when nothing is."""
    if provider not in PROVIDERS:
        return f"must name a known execution provider, got {provider!r}; {did_you_mean(provider, PROVIDERS)}"
    known = PROVIDERS[provider].options
    for option in options:
        if option not in known:
            return f"{provider} documents no option {option!r}; {did_you_mean(option, known)}"
    return ""
