"""A torchvision network with seeded random weights, behind Triton's python backend.

Rule: tensors come and go by DLPack and stay on the device that they are on; numpy is not used, so
its version does not matter. Runs inside Triton, with a Python that has torch and torchvision.

Parameters: net, a name of `torchvision.models` or `identity`; seed, of the weights. The weights are
random: times are those of the network, answers mean nothing, and equal seeds give equal answers.
"""

import json

import torch
import torchvision
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack


class Copy(torch.nn.Module):
    """Identity into memory of its own: what comes back has been through the device."""

    def forward(self, given):
        """given: any shape."""
        return given.clone()


def network(name, seed):
    """The network in evaluation mode; the same weights for the same seed and version of torch."""
    torch.manual_seed(seed)
    made = Copy() if name == "identity" else getattr(torchvision.models, name)(weights=None)
    return made.eval()


class TritonPythonModel:
    """Triton's interface to a python model."""

    def initialize(self, args):
        """Weights onto the instance's device; one run, so that the first batch is like others."""
        config = json.loads(args["model_config"])
        given = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self._on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if self._on_gpu else "cpu"
        self._device = torch.device(device)
        if self._on_gpu:
            torch.cuda.set_device(self._device)
            torch.backends.cudnn.deterministic = True  # answers of two transports are compared
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        else:
            torch.set_num_threads(1)
        self._net = network(given["net"], int(given["seed"])).to(self._device)
        dims = [int(extent) for extent in config["input"][0]["dims"]]
        self._run(torch.zeros([1, *dims], device=self._device))

    def _run(self, given):
        with torch.inference_mode():
            made = self._net(given.to(self._device)).contiguous()
        if self._on_gpu:
            torch.cuda.current_stream(self._device).synchronize()  # Triton reads it at once
        return made

    def execute(self, requests):
        """One response a request: INPUT as the network's OUTPUT."""
        responses = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "INPUT")
            made = self._run(from_dlpack(given.to_dlpack()))
            output = pb_utils.Tensor.from_dlpack("OUTPUT", to_dlpack(made))
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
