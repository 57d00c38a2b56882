"""Writes tests/fixtures/numpy/: files as NumPy writes them, for tests/checkpoint/numpy.rs.

    python tests/oracle/numpy_files.py        (numpy 2)
"""

import io
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent.parent / "fixtures" / "numpy"
DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8"]


def sample(dtype):
    """2 x 3 elements, which `tests/checkpoint/numpy.rs` computes too."""
    i = np.arange(6).reshape(2, 3)
    if dtype == "?":
        return i % 2 == 1
    if dtype == "c8":
        return (i - 1j * i).astype("c8")
    return ((i - 2) if dtype[0] != "u" else i + 200).astype(dtype)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    arrays = {dtype.replace("?", "b1"): sample(dtype) for dtype in DTYPES}
    arrays |= {f"big_{name}": a.astype(a.dtype.newbyteorder(">")) for name, a in arrays.items()}
    arrays["fortran"] = np.asfortranarray(np.arange(24, dtype="i4").reshape(2, 3, 4))
    arrays["scalar"] = np.float32(2.5)
    arrays["empty"] = np.zeros((0, 3), "f4")
    np.savez(OUT / "stored.npz", **arrays)
    np.savez_compressed(OUT / "compressed.npz", **arrays)
    np.save(OUT / "one.npy", sample("f4"))
    long = io.BytesIO()
    np.lib.format.write_array(long, sample("i8"), version=(2, 0))
    (OUT / "version2.npy").write_bytes(long.getvalue())
    for name, array in {
        "complex128": sample("f8") + 1j,
        "text": np.array(["a", "bc"]),
        "record": np.zeros(2, "i4,f4"),
        "void2": np.zeros(3, "V2"),
    }.items():
        np.save(OUT / f"refused_{name}.npy", array)


main()
