"""Runs an ONNX model on onnxruntime beside what it should give; tests/onnx.rs calls it.

    onnx_check.py MODEL FOLDER...

Each folder has images.npy, embedding.npy and pooled.npy. Prints the largest difference of each output, absolute for
embedding and in units of the largest value, if that is above 1, for pooled; fails if one is above 1e-5.

Passes with onnx 1.23.2 and onnxruntime 1.32.0, and with 1.14.1 and 1.15.1 of 2023.
"""

import pathlib
import sys

import numpy
import onnx
import onnxruntime

TOLERANCE = 1e-5


def main(path, folders):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    assert [value.name for value in session.get_outputs()] == ["embedding", "pooled"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["architecture"] == model.graph.name and metadata["input"], metadata
    print(f"  onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
    failed = False
    for folder in map(pathlib.Path, folders):
        images, embedding, pooled = (numpy.load(folder / f"{name}.npy") for name in ("images", "embedding", "pooled"))
        # Otherwise agreement would mean little: biases alone decide.
        assert len(images) == 1 or not embedding.any() or abs(embedding[0] - embedding[1]).max() > 1e-3, folder
        found = session.run(["embedding", "pooled"], {"images": images})
        for name, found, expected, unit in [
            ("embedding", found[0], embedding, 1.0),
            ("pooled", found[1], pooled, max(1.0, float(abs(pooled).max()))),
        ]:
            assert found.shape == expected.shape and found.dtype == expected.dtype, (found.shape, expected.shape)
            difference = float(abs(found - expected).max()) / unit
            print(f"  images {list(images.shape)}: {name} differs by at most {difference:.1e}")
            # Also if it is not a number.
            failed |= not difference <= TOLERANCE
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
