"""Parts of a network that OpenVINO runs, in float32 on the CPU.

OpenVINO's own backend of torch.compile is not used: it gives the same memory again at the next call, and where it fails
it goes on without a word. Here a part is exported by torch.export and converted by `openvino.convert_model`.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mammosae_plugin.errors import InputError

_TELEMETRY = "openvino_telemetry"


def require_openvino(model: nn.Module) -> None:
    """Check that OpenVINO is there and can run the network where it lies.

    Raises:
        InputError: It is not installed, or the network is not in float32 on the CPU.
    """
    _openvino()
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            kind = f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
            raise InputError(
                f"openvino runs networks in float32 on the CPU, and this one is {kind}; compile it with inductor"
            )


def _openvino() -> Any:
    """OpenVINO without its telemetry, which tells an analytics service of every import and every conversion."""
    if "openvino" not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import openvino
    except ImportError as error:
        raise InputError("openvino is not installed; run: pip install 'mammosae-plugin[openvino]'") from error
    return openvino


class _Forward(nn.Module):
    """A part's own forward, without what hangs at the part itself."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> Any:
        return type(self.part).forward(self.part, x)


class OpenVINOForward:
    """What stands in for the forward of a part: converted anew at each shape of its input, eager where it must be.

    Eager is what OpenVINO cannot do the same: several inputs or outputs, other number formats, autocast, gradients,
    training mode, and hooks inside the part.

    Args:
        part: a module of a network in evaluation mode.
    """

    def __init__(self, part: nn.Module):
        """Keep the part's own forward."""
        self.part = part
        self.eager: Callable[..., Any] = part.forward
        self.converted: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the part's forward: a tensor of any shape -> a tensor that shares its memory with no other."""
        if len(args) != 1 or kwargs or not self._can_run(args[0]):
            return self.eager(*args, **kwargs)
        x: torch.Tensor = args[0].detach()
        # OpenVINO's convolutions keep channels last, too: memory handed over as it lies saves two passes over a map.
        last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        key = (tuple(x.shape), last)
        if key not in self.converted:
            self.converted[key] = self._convert(x, last)
        run = self.converted[key]
        if run is None:
            return self.eager(x)
        return torch.from_numpy(run((x.permute(0, 2, 3, 1) if last else x.contiguous()).numpy())[0])

    def _can_run(self, x: object) -> bool:
        return (
            isinstance(x, torch.Tensor)
            and (x.dtype, x.device.type) == (torch.float32, "cpu")
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not any(
                module.training or (module is not self.part and (module._forward_hooks or module._forward_pre_hooks))
                for module in self.part.modules()
            )
        )

    def _convert(self, x: torch.Tensor, last: bool) -> Any:
        """The part for inputs like `x`, or None if it does anything else than give one new tensor."""
        openvino = _openvino()
        own = self.part.__dict__.pop("forward", None)  # this object, which is not to be exported
        try:
            with torch.inference_mode(False), torch.no_grad():
                example = x.clone(memory_format=torch.contiguous_format)
                version, value = example._version, self.eager(example)
                if (
                    not isinstance(value, torch.Tensor)
                    or example._version != version
                    or value.untyped_storage().data_ptr() == example.untyped_storage().data_ptr()
                ):
                    return None
                exported = torch.export.export(_Forward(self.part), (example,), strict=False)
                network = openvino.convert_model(exported)
        except Exception as failure:  # whatever a compiler raises on code that it does not know
            reason = " ".join(str(failure).split("\n\n")[0].split())[:300] or type(failure).__name__
            raise InputError(
                f"openvino cannot convert {type(self.part).__name__} here; run the network without ({reason})"
            ) from failure
        finally:
            if own is not None:
                self.part.forward = own
        network.reshape(list(x.shape))
        if last:
            network = _from_channels_last(openvino, network)
        # Without the hint a CPU that has them computes in 16 bits.
        return openvino.Core().compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )


def _from_channels_last(openvino: Any, network: Any) -> Any:
    """The same network with inputs (B, h, w, C)."""
    from openvino.preprocess import PrePostProcessor

    around = PrePostProcessor(network)
    around.input().tensor().set_layout(openvino.Layout("NHWC"))
    around.input().model().set_layout(openvino.Layout("NCHW"))
    return around.build()
