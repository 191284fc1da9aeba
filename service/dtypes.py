"""The dtypes of tensors, with their names in numpy, the Open Inference Protocol and onnxruntime."""

import numpy as np

# numpy's name: the protocol's datatype, onnxruntime's type, the protobuf field of InferTensorContents (none for FP16,
# which is sent only as raw bytes).
_TABLE = {
    "bool": ("BOOL", "tensor(bool)", "bool_contents"),
    "uint8": ("UINT8", "tensor(uint8)", "uint_contents"),
    "uint16": ("UINT16", "tensor(uint16)", "uint_contents"),
    "uint32": ("UINT32", "tensor(uint32)", "uint_contents"),
    "uint64": ("UINT64", "tensor(uint64)", "uint64_contents"),
    "int8": ("INT8", "tensor(int8)", "int_contents"),
    "int16": ("INT16", "tensor(int16)", "int_contents"),
    "int32": ("INT32", "tensor(int32)", "int_contents"),
    "int64": ("INT64", "tensor(int64)", "int64_contents"),
    "float16": ("FP16", "tensor(float16)", ""),
    "float32": ("FP32", "tensor(float)", "fp32_contents"),
    "float64": ("FP64", "tensor(double)", "fp64_contents"),
}
DTYPES: dict[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in _TABLE}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}  # numpy takes ten times as long to tell a name
DATATYPES = {name: datatype for name, (datatype, _, _) in _TABLE.items()}
NAMES = {datatype: name for name, datatype in DATATYPES.items()}
OF_ONNX = {kind: name for name, (_, kind, _) in _TABLE.items()}
CONTENTS = {name: field for name, (_, _, field) in _TABLE.items() if field}
