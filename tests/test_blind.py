"""NIQE against recorded values of BasicSR, and by its parts; BRISQUE against OpenCV's features."""

import math

import numpy as np
import pytest
import scipy.io
from PIL import Image

from lljax.errors import InputError
from lljax.evaluation import blind
from lljax.evaluation.metrics import Files, choose


@pytest.fixture(scope="module")
def parameters(tmp_path_factory):
    """Made-up parameters: features of noise."""
    path = tmp_path_factory.mktemp("niqe") / "made.npz"
    rng = np.random.default_rng(1)
    spread = rng.normal(0, 0.1, (36, 36))
    np.savez(path, mu_pris_param=rng.normal(1, 0.3, (1, 36)), cov_pris_param=spread @ spread.T)
    return path


def textured(height, width, seed=0):
    """A picture whose texture is not the same everywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    plane = 110 + 60 * np.sin(x / 17) * np.cos(y / 23) + rng.laplace(0, 8, (height, width))
    return np.clip(plane[..., None] + [0, 6, -9], 0, 255).astype(np.uint8)


def test_recorded_values(shared):
    recorded = np.load(shared / "reference" / "metrics_niqe.npz")
    path = shared / "data" / "weights" / "niqe" / "niqe_pris_params.npz"
    if not path.exists():
        pytest.skip("NIQE's parameters are not here")
    crop = recorded["crop_rgb_uint8"]
    niqe = blind.Niqe(str(path))
    card = choose(["niqe"], files=Files(niqe=str(path)))[0][0]
    assert card.function(crop, None, crop) == pytest.approx(
        float(recorded["crop_niqe"]), rel=0, abs=card.tolerance)
    luma = blind.luma(crop.astype(float))
    np.testing.assert_allclose(luma, recorded["crop_y_unrounded"], atol=1e-4)
    np.testing.assert_allclose(blind._halved(np.round(luma)), recorded["crop_y_half_imresize"],
                               atol=1e-3)
    np.testing.assert_allclose(blind._features(recorded["block"].astype(float)),
                               recorded["block_features18"], atol=1e-5)
    bgr = np.ascontiguousarray(crop[..., ::-1])
    assert abs(niqe(bgr) - niqe(crop)) > 1e-3  # the order of the channels matters
    scored = 0
    for name, expected in zip(recorded["files"], recorded["niqe"], strict=True):
        if (shared / str(name)).exists():
            picture = np.asarray(Image.open(shared / str(name)).convert("RGB"))
            assert card.function(picture, None, picture) == pytest.approx(
                float(expected), rel=0, abs=card.tolerance), name
            scored += 1
    if not scored:
        pytest.skip("the pictures of the recorded values are not here")


def test_a_gaussian_s_shape_is_found():
    rng = np.random.default_rng(3)
    shape, left, right = blind._fitted(rng.normal(0, 2, 200_000))
    assert shape == pytest.approx(2, abs=0.05) and left == pytest.approx(right, rel=0.02)
    assert left == pytest.approx(2 * math.sqrt(2), rel=0.03)  # exp(-(x / scale)^2)
    shape, _, _ = blind._fitted(rng.laplace(0, 1, 200_000))
    assert shape == pytest.approx(1, abs=0.03)
    values = np.where(rng.random(200_000) < 0.5, -1, 3) * np.abs(rng.normal(0, 1, 200_000))
    _, left, right = blind._fitted(values)
    assert right / left == pytest.approx(3, rel=0.02)


def test_halving_keeps_planes_and_means():
    y, x = np.mgrid[:24, :32].astype(float)
    half = blind._halved(3 * x + 2 * y)
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(half[inside], (3 * (2 * x + 0.5) + 2 * (2 * y + 0.5))[:12, :16][
        inside], atol=1e-9)
    np.testing.assert_allclose(blind._halved(np.full((8, 8), 7.0)), 7, atol=1e-12)


def test_only_whole_blocks_count(parameters):
    niqe = blind.Niqe(str(parameters))
    picture = textured(110, 200)
    assert niqe(picture) == niqe(picture[:96, :192])
    changed = picture.copy()
    changed[96:] = 0
    assert niqe(changed) == niqe(picture)


def test_blocks_without_texture_are_left_out(parameters):
    niqe = blind.Niqe(str(parameters))
    flat = np.full((192, 192, 3), 30, np.uint8)
    assert niqe(flat) == math.inf
    flat[:96, :96] = textured(96, 96)
    assert niqe(flat) == math.inf  # one block has no covariance
    flat[96:, :96] = textured(96, 96, seed=1)
    assert 0 < niqe(flat) < math.inf


def test_a_matlab_file_holds_the_same(parameters, tmp_path):
    arrays = np.load(parameters)
    scipy.io.savemat(tmp_path / "model.mat", {"mu_prisparam": arrays["mu_pris_param"],
                                              "cov_prisparam": arrays["cov_pris_param"]})
    picture = textured(96, 192)
    assert blind.Niqe(str(tmp_path / "model.mat"))(picture) == blind.Niqe(str(parameters))(picture)


def test_what_niqe_refuses(parameters, tmp_path):
    card = choose(["niqe"], files=Files(niqe=str(parameters)))[0][0]
    assert card.function(textured(96, 192), None, textured(96, 192)) > 0
    for shape in ((95, 400), (100, 191)):
        small = textured(*shape)
        with pytest.raises(InputError, match=f"{shape[1]}x{shape[0]}.*NIQE.*96 px and 192 px"):
            card.function(small, None, small)
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "text.mat").write_text("no arrays")
    np.savez(tmp_path / "other.npz", mu_pris_param=np.zeros(35), cov_pris_param=np.zeros((36, 36)))
    np.savez(tmp_path / "half.npz", mu_pris_param=np.zeros(36))
    for name, message in (("text.npz", "no .npz or .mat file"), ("text.mat", "no .npz or .mat"),
                          ("other.npz", r"mu_pris_param.*\(35,\), expected numbers \(36,\)"),
                          ("half.npz", "cov_pris_param or cov_prisparam is absent"),
                          ("none.npz", "no file")):
        with pytest.raises(InputError, match=message) as caught:
            blind.Niqe(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def brisque(tmp_path_factory):
    """Files of a made model: one support vector, so that the score follows one distance."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "quality"):
        pytest.skip("this OpenCV has no quality module")
    folder = tmp_path_factory.mktemp("brisque")
    machine = cv2.ml.SVM_create()
    machine.setType(cv2.ml.SVM_EPS_SVR)
    machine.setKernel(cv2.ml.SVM_RBF)
    machine.setGamma(0.05)
    machine.setC(100)
    machine.setP(0.1)
    rng = np.random.default_rng(0)
    machine.train(rng.uniform(-1, 1, (12, 36)).astype(np.float32), cv2.ml.ROW_SAMPLE,
                  np.linspace(5, 95, 12).astype(np.float32))
    machine.save(str(folder / "model.yml"))
    storage = cv2.FileStorage(str(folder / "range.yml"), cv2.FILE_STORAGE_WRITE)
    storage.write("range", np.tile(np.float32([[-2], [4]]), (1, 36)))
    storage.release()
    return cv2, machine, folder


def test_brisque_is_opencv_s(brisque):
    cv2, machine, folder = brisque
    files = Files(brisque=[str(folder / "model.yml"), str(folder / "range.yml")])
    card = choose(["brisque"], files=files)[0][0]
    values = []
    for seed in range(2):
        picture = textured(64, 80, seed)
        features = cv2.quality.QualityBRISQUE_computeFeatures(picture[..., ::-1].copy())
        scaled = -1 + 2 * (features.astype(np.float32) + 2) / 6
        expected = np.clip(machine.predict(scaled.reshape(1, 36))[1][0, 0], 0, 100)
        values.append(card.function(picture, None, picture))
        by_opencv = cv2.quality.QualityBRISQUE_compute(
            picture[..., ::-1].copy(), str(folder / "model.yml"), str(folder / "range.yml"))[0]
        assert values[-1] == pytest.approx(by_opencv, rel=0, abs=card.tolerance)
        assert values[-1] == pytest.approx(float(expected), abs=1e-3)
    assert values[0] != values[1]
    for picture in (textured(16, 16), np.zeros((16, 40, 3), np.uint8)):
        assert 0 <= card.function(picture, None, picture) <= 100
    for shape in ((15, 40), (40, 15)):
        with pytest.raises(InputError, match="BRISQUE needs at least 16 px a side"):
            card.function(textured(*shape), None, textured(*shape))
    with pytest.raises(InputError, match="no file 'absent.yml'"):
        blind.Brisque("absent.yml", str(folder / "range.yml"))
    (folder / "text.yml").write_text("no model")
    with pytest.raises(InputError, match="text.yml.*not BRISQUE's") as caught:
        blind.Brisque(str(folder / "text.yml"), str(folder / "range.yml"))
    assert "\n" not in str(caught.value)


def test_without_opencv_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(blind.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lljax\[brisque\]'"):
        choose(files=Files(brisque=("model.yml", "range.yml")))
    assert "lljax[brisque]" in choose(["all"])[1]["brisque"]
