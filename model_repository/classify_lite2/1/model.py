"""A picture classifier: `model.onnx` run by onnxruntime inside Triton's python backend.

Rule: all requests handed over are one run of the network; a fault of one request stays its own.
The Triton that the project starts has no onnxruntime backend, hence this file; it stands in each
classifier's folder unchanged, because Triton wants a model's folder to be complete.
"""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's interface to a python model."""

    def initialize(self, args):
        """Load the network. An error here is the model's load error."""
        options = onnxruntime.SessionOptions()
        # A second thread would compete with the requests' own way through Triton and make the
        # time of a batch unpredictable, which costs a scheduler more than it gains.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; its warnings on folded constants say nothing
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        """IMAGE uint8 [rows, 260, 260, 3] -> SCORES float32 [rows, 1000] for each request."""
        responses = [None] * len(requests)
        pictures = {}
        for index, request in enumerate(requests):
            try:
                pictures[index] = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            except Exception as fault:
                responses[index] = failure(fault)
        try:
            parts = self.classify(list(pictures.values()))
        except Exception as fault:
            parts = [fault] * len(pictures)
        for index, part in zip(pictures, parts):
            responses[index] = failure(part) if isinstance(part, Exception) else answer(part)
        return responses

    def classify(self, pictures):
        """One run over all pictures, cut into one [rows, 1000] per request."""
        if not pictures:
            return []
        batch = pictures[0] if len(pictures) == 1 else np.concatenate(pictures)
        (scores,) = self.session.run(["SCORES"], {"IMAGE": batch})
        return np.split(scores, np.cumsum([len(rows) for rows in pictures[:-1]]))


def answer(scores):
    """A response that carries the scores."""
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("SCORES", scores)])


def failure(fault):
    """A response that carries the error alone."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"classifier: {fault}"))
