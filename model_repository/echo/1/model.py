"""Identity. Rule: the output is a copy of the input's values, never the input's own memory."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's interface to a python model."""

    def execute(self, requests):
        """One response a request: INPUT [rows, n] as OUTPUT [rows, n]."""
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(
                        "OUTPUT",
                        pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy().copy(),
                    )
                ]
            )
            for request in requests
        ]
