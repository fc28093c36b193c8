"""What the ONNX parser of TensorRT is documented to read: operators, types, limits.

From the operator tables of github.com/onnx/onnx-tensorrt (docs/operators.md, Apache-2.0) of 8.5,
9.2 and 10.15. 8.6 reads what its change log adds to 8.5, and whole numbers in Reduce, which its
layer's page has and whose importer checks no type. A version between two tables reads at least
what the older one says. INT8 is left out but for Q/DQ: elsewhere it means calibration without Q/DQ
nodes, which tk does not use.
"""

from __future__ import annotations

from tk.runtime.backends.tensorrt.library import parse_version

LETTERS = {
    "f": "FLOAT",
    "h": "FLOAT16",
    "b": "BFLOAT16",
    "i": "INT32",
    "l": "INT64",
    "q": "INT8",
    "u": "UINT8",
    "t": "BOOL",
}
"""Letter of the table -> element type of ONNX."""

TABLES: tuple[tuple[tuple[int, ...], int], ...] = (((8, 6), 17), ((9, 2), 19), ((10, 15), 24))
"""Version of each column below, and the newest opset that it reads."""

_ROWS: tuple[tuple[tuple[str, str, str], str], ...] = (
    (
        ("fh", "fhb", "fhb"),
        "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos "
        "Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool "
        "GlobalMaxPool GroupNormalization HardSigmoid HardSwish InstanceNormalization IsInf LRN "
        "LSTM LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool "
        "MeanVarianceNormalization PRelu QuantizeLinear RNN RandomNormal RandomNormalLike "
        "RandomUniform RandomUniformLike Reciprocal Resize Round Scan Selu Sigmoid Sin Sinh "
        "Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        ("fhi", "fhbil", "fhbil"),
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less "
        "LessOrEqual Max Mean Min Mod Mul Neg Pad Range Scatter ScatterElements ScatterND Shrink "
        "Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        ("fhit", "fhbilt", "fhbilt"),
        "Concat Constant Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop "
        "OneHot Reshape Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    (
        ("fhi", "fhbil", "fhbil"),
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare",
    ),
    (("fh", "fh", "fh"), "GridSample NonMaxSuppression NonZero RoiAlign"),
    (("fhi", "fhb", "fhb"), "AveragePool"),
    (("fh", "fhb", "fhbil"), "Pow"),
    (("fh", "fhbil", "fhbil"), "Relu"),
    (("fh", "fhbilt", "fhbilt"), "ReverseSequence"),
    (("fhitu", "fhbiltu", "fhbiltu"), "Cast"),
    (("", "fhbiltu", "fhbiltu"), "CastLike"),
    (("f", "f", "fhbilt"), "ConstantOfShape"),
    (("t", "t", "t"), "And Not Or Xor"),
    (("q", "q", "q"), "DequantizeLinear"),
    (("", "fhb", "fhb"), "Hardmax"),
    (("", "", "fh"), "BlackmanWindow DeformConv HammingWindow HannWindow Mish"),
    (("", "", "fhbil"), "Gelu"),
    (("", "", "f"), "STFT"),
)
"""Letters at 8.6, 9.2 and 10.15 ("": not read) -> operators; all others are not read."""

_TYPES = {name: letters for letters, names in _ROWS for name in names.split()}


def column(version: str) -> int:
    """Which table speaks for a version: the newest that is not newer than it."""
    found = parse_version(version)
    return max((i for i, (first, _) in enumerate(TABLES) if first <= found), default=0)


def is_strong(version: str) -> bool:
    """Whether the types of a graph are binding: since 10; 8.6 chooses types by itself."""
    return parse_version(version)[:1] >= (10,)


def reads_part_of_shape(version: str) -> bool:
    """Whether `start` and `end` of Shape are read: not by the importers of 8.6 and 9; by 10.6's."""
    return parse_version(version)[:2] >= (10, 6)


def newest_opset(version: str) -> int:
    """Newest opset that a version is documented to read."""
    return TABLES[column(version)][1]


def types_read(operator: str, version: str) -> frozenset[str]:
    """Types of its data that an operator is documented to be read with; empty: not at all.

    8.6 turns INT64 into INT32, so what it reads of one it reads of the other.
    """
    place = column(version)
    letters = _TYPES.get(operator, ("",) * len(TABLES))[place]
    if place == 0 and "i" in letters:
        letters += "l"
    return frozenset(LETTERS[letter] for letter in letters)
