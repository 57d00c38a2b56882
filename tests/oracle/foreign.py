"""Records matrices as other programs store quantized ones, and what they mean.

    python foreign.py ../fixtures/foreign

Needs numpy; with mlx and mlx-lm, it also holds the AWQ case to mlx-lm's own reading of it. Codes, scales and
zeros are drawn; each format's packing is written bit by bit from its description, and the values are
computed from the codes in float64. A case is a folder with `config.json`, `model.safetensors` and
`expect.npy`, the dense matrix `layer`, float32.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 32, 128
NAMES = {"float16": "F16", "float32": "F32", "int32": "I32", "int8": "I8", "uint8": "U8", "int64": "I64", "uint32": "U32"}


def safetensors(path, tensors):
    header, data = {}, b""
    for name, value in tensors.items():
        value, dtype = value if isinstance(value, tuple) else (value, NAMES[value.dtype.name])
        raw = np.ascontiguousarray(value).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write(out, name, quantization, tensors, expect):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "none", "quantization_config": quantization}) + "\n")
    safetensors(folder / "model.safetensors", tensors)
    np.save(folder / "expect.npy", expect.astype(np.float32))


def stream(codes, bits):
    """Codes along the last axis as int32 words: code i at bit i * bits."""
    total = codes.shape[-1] * bits
    assert total % 32 == 0
    words = np.zeros(codes.shape[:-1] + (total // 32,), np.uint64)
    for i in range(codes.shape[-1]):
        for b in range(bits):
            at = i * bits + b
            bit = (codes[..., i].astype(np.uint64) >> np.uint64(b)) & np.uint64(1)
            words[..., at // 32] |= bit << np.uint64(at % 32)
    return words.astype(np.uint32).view(np.int32)


def along(codes, bits, axis):
    return np.moveaxis(stream(np.moveaxis(codes, axis, -1), bits), -1, axis)


def awq_words(codes):
    """Each eight columns as a word whose nibbles are columns 0, 2, 4, 6, 1, 3, 5, 7."""
    columns = codes.reshape(codes.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return stream(columns.reshape(codes.shape), 4)


def drawn(rng, bits, groups):
    codes = rng.integers(0, 2**bits, (ROWS, COLUMNS))
    scales = rng.uniform(0.01, 0.1, (ROWS, groups)).astype(np.float16)
    zeros = rng.integers(1, 2**bits, (ROWS, groups))
    return codes, scales, zeros


def values(codes, scales, zeros, group_of=None):
    columns = codes.shape[1]
    group_of = np.arange(columns) // (columns // scales.shape[1]) if group_of is None else group_of
    return (codes - zeros[:, group_of]) * scales.astype(np.float64)[:, group_of]


def e4m3(codes):
    """The numbers of 8-bit floats: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities."""
    codes = codes.astype(np.int64)
    sign, exponent, mantissa = np.where(codes & 128, -1.0, 1.0), (codes >> 3) & 15, codes & 7
    return sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def e2m1(codes):
    return np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])[codes]


def bfloat16(x):
    """Rounded to the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def awq(out, rng):
    codes, scales, zeros = drawn(rng, 4, 2)
    tensors = {
        "layer.qweight": awq_words(codes.T),
        "layer.qzeros": awq_words(zeros.T),
        "layer.scales": scales.T,
        "norm.weight": np.arange(4, dtype=np.float32),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    write(out, "awq", config, tensors, values(codes, scales, zeros))
    try:
        import mlx.core as mx
        from mlx_lm.utils import _transform_awq_weights
    except ImportError:
        return
    weights = {k: mx.array(v.copy()) for k, v in tensors.items()}
    theirs, _ = _transform_awq_weights({k: v.view(mx.uint32) if v.dtype == mx.int32 else v for k, v in weights.items()}, config)
    parts = [theirs[f"layer.{k}"] for k in ("weight", "scales", "biases")]
    dense = np.array(mx.dequantize(*parts, group_size=64, bits=4).astype(mx.float32))
    np.savez(out / "awq" / "mlx_lm.npz", **{k: np.array(theirs[f"layer.{k}"]) for k in ("weight", "scales", "biases")})
    assert np.abs(dense - values(codes, scales, zeros)).max() < 2e-3


def gptq(out, rng):
    for bits in (2, 3, 4, 8):
        codes, scales, zeros = drawn(rng, bits, 2 if bits != 8 else 1)
        tensors = {
            "layer.qweight": along(codes.T, bits, 0),
            "layer.qzeros": stream((zeros - 1).T, bits),
            "layer.scales": scales.T,
            "layer.g_idx": (np.arange(COLUMNS) // (COLUMNS // scales.shape[1])).astype(np.int32),
        }
        config = {"quant_method": "gptq", "bits": bits, "group_size": 64, "desc_act": False, "sym": False}
        write(out, f"gptq{bits}", config, tensors, values(codes, scales, zeros))
    codes, scales, zeros = drawn(rng, 4, 4)
    group_of = rng.permutation(np.arange(COLUMNS) // 32)
    tensors = {
        "layer.qweight": along(codes.T, 4, 0),
        "layer.qzeros": stream(zeros.T, 4),
        "layer.scales": scales.T,
        "layer.g_idx": group_of.astype(np.int32),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"}
    write(out, "gptq_act_order", config, tensors, values(codes, scales, zeros, group_of))


def compressed(out, rng):
    def config(format, **weights):
        return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}

    for bits, groups, zero in ((4, 4, False), (8, 1, False), (4, 2, True), (4, 8, True)):
        codes, scales, zeros = drawn(rng, bits, groups)
        tensors = {
            "layer.weight_packed": stream(codes, bits),
            "layer.weight_scale": scales,
            "layer.weight_shape": np.array([ROWS, COLUMNS], np.int64),
        }
        if zero:
            tensors["layer.weight_zero_point"] = along(zeros, bits, 0)
        else:
            zeros = np.full_like(zeros, 2 ** (bits - 1))
        name = f"packed{bits}" + ("_zero" if zero else "") + ("_groups_of_16" if groups == 8 else "")
        write(out, name, config("pack-quantized", num_bits=bits), tensors, values(codes, scales, zeros))

    codes = rng.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, (ROWS, 1)).astype(np.float16)
    write(out, "int8", config("int-quantized", num_bits=8), {"layer.weight": codes, "layer.weight_scale": scales},
          codes * scales.astype(np.float64))

    codes = rng.integers(0, 16, (ROWS, COLUMNS))
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    exponents = rng.integers(120, 130, (ROWS, COLUMNS // 32)).astype(np.uint8)
    scale = np.repeat(2.0 ** (exponents - 127.0), 32, axis=1)
    write(out, "mxfp4", config("mxfp4-pack-quantized"),
          {"layer.weight_packed": packed, "layer.weight_scale": (exponents, "F8_E8M0")}, e2m1(codes) * scale)
    small = rng.integers(40, 80, (ROWS, COLUMNS // 16)).astype(np.uint8)
    whole = np.array([4.0], np.float32)
    scale = np.repeat(e4m3(small), 16, axis=1)
    write(out, "nvfp4", config("nvfp4-pack-quantized"),
          {"layer.weight_packed": packed, "layer.weight_scale": (small, "F8_E4M3"), "layer.weight_global_scale": whole,
           "layer.input_global_scale": whole},
          bfloat16(e2m1(codes) * scale / 4.0))


def fp8(out, rng):
    def codes(*shape):
        drawn = rng.integers(0, 256, shape)
        return np.where(drawn & 127 == 127, 0, drawn).astype(np.uint8)

    rows, columns = 40, 72
    matrix = codes(rows, columns)
    scales = rng.uniform(0.5, 2, (3, 5)).astype(np.float32)
    scale = np.repeat(np.repeat(scales, 16, axis=0), 16, axis=1)[:rows, :columns]
    expect = bfloat16((e4m3(matrix) * scale).astype(np.float32))
    write(out, "fp8_blocks", {"quant_method": "fp8", "weight_block_size": [16, 16]},
          {"layer.weight": (matrix, "F8_E4M3"), "layer.weight_scale_inv": scales}, expect)
    one = np.array([0.25], np.float32)
    write(out, "fp8_one", {"quant_method": "fp8"},
          {"layer.weight": (matrix, "F8_E4M3"), "layer.weight_scale_inv": one, "layer.activation_scale": one},
          bfloat16(e4m3(matrix) / 4))
    matrix = codes(ROWS * 2, COLUMNS)
    exponents = rng.integers(120, 130, (2, COLUMNS // 32)).astype(np.uint8)
    scale = np.repeat(np.repeat(2.0 ** (exponents - 127.0), 32, axis=0), 32, axis=1)
    write(out, "fp8_e8m0", {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]},
          {"layer.weight": (matrix, "F8_E4M3"), "layer.weight_scale_inv": (exponents, "F8_E8M0")}, e4m3(matrix) * scale)


def bitnet(out, rng):
    values = rng.integers(-1, 2, (ROWS, COLUMNS))
    quarters = (values + 1).reshape(4, ROWS // 4, COLUMNS)
    packed = sum(quarters[i] << (2 * i) for i in range(4)).astype(np.uint8)
    scale = np.array([4.0], np.float32)
    for name, linear_class, factor in (("bitnet", "bitlinear", 0.25), ("bitnet_auto", "autobitlinear", 4.0)):
        write(out, name, {"quant_method": "bitnet", "linear_class": linear_class},
              {"layer.weight": packed, "layer.weight_scale": scale}, values * factor)


def main():
    out, rng = Path(sys.argv[1]), np.random.default_rng(4)
    for case in (awq, gptq, compressed, fp8, bitnet):
        case(out, rng)


if __name__ == "__main__":
    main()
