"""A multilayer perceptron of 3 layers of 2048 with ReLU, in numpy.

Rule: all requests handed over are one matrix product, so that a batch pays; a request of a wrong
shape never gets here, Triton refuses it by config.pbtxt.
The weights (`weights.npy`, float32 [3, 2048, 2048]) are seeded random numbers made at set-up.
"""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's interface to a python model."""

    def initialize(self, args):
        """Map the weights. An error here is the model's load error."""
        directory = os.path.join(args["model_repository"], args["model_version"])
        path = os.path.join(directory, "weights.npy")
        if not os.path.exists(path):
            raise pb_utils.TritonModelException(f"{path} is missing; `make install` makes it")
        self.weights = np.load(path, allow_pickle=False)

    def execute(self, requests):
        """INPUT [rows, 2048] -> OUTPUT [rows, 2048] for each request, computed as one batch."""
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT").as_numpy() for r in requests]
        x = np.concatenate(inputs)
        for layer in self.weights:
            x = np.maximum(x @ layer, 0.0)
        cuts = np.cumsum([len(rows) for rows in inputs[:-1]])
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT", part)])
            for part in np.split(x, cuts)
        ]
