"""Detectors as ONNX: other runtimes answer as torch does."""

import numpy as np
import onnxruntime
import pytest
import torch

from detect.calibration import Calibration
from detect.detector import load
from detect.distildire import DistilDireDetector
from experiments import onnx

pytestmark = pytest.mark.filterwarnings("default")  # the exporter's own


@pytest.fixture
def through_a_model(small_prior, tmp_path, monkeypatch):
    """The folder of a detector that looks through a small diffusion model."""
    from detect import distildire

    prior = small_prior(16, ["cat"])
    monkeypatch.setattr(distildire, "load", lambda name: prior)
    torch.manual_seed(0)
    network = {"blocks": (1, 1), "width": 8, "bottleneck": False, "small": True}
    made = DistilDireDetector(model="prior", network=network)
    made.calibration = Calibration(2.0, -0.5, 0.3, 0.7, 20, 20, "nothing")
    made.save(tmp_path / "kept")
    return tmp_path / "kept"


def test_another_runtime_answers_as_torch_does(through_a_model, tmp_path, capsys, generator):
    out = tmp_path / "detector.onnx"
    assert onnx.main([str(through_a_model), str(out), "--side", "16"]) == 0
    assert "of torch's" in capsys.readouterr().out
    images = torch.rand(7, 3, 16, 16, generator=generator)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"images": each[None].numpy()}) for each in images]
    logits, probabilities = (np.concatenate(each) for each in zip(*answers, strict=True))
    detector = load(through_a_model)
    np.testing.assert_allclose(logits, detector.scores(images).numpy(), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(probabilities, detector.predict_proba(images)[:, 1].numpy(), atol=1e-3)


def test_what_ships_can_be_written(tmp_path):
    assert onnx.main(["detect/builtin", str(tmp_path / "detector.onnx"), "--side", "32"]) == 0


def test_a_folder_without_a_calibrated_detector_takes_one_line(tmp_path, capsys):
    assert onnx.main(["nowhere", str(tmp_path / "a.onnx"), "--side", "32"]) == 1
    assert capsys.readouterr().err.startswith("onnx: 'nowhere' holds no detector")
    load("detect/builtin").save(tmp_path / "kept")
    uncalibrated = load(tmp_path / "kept")
    uncalibrated.calibration = None
    uncalibrated.save(tmp_path / "kept")
    assert onnx.main([str(tmp_path / "kept"), str(tmp_path / "a.onnx"), "--side", "32"]) == 1
    assert "not calibrated" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
