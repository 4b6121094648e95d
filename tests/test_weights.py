import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from srgan import Generator, GeneratorConfig, WeightsError, load_weights, save_weights
from srgan import weights as module
from srgan.weights import (
    BUNDLED,
    BUNDLED_FOLDER,
    CONFIG_FILE,
    PHOTO_FILE,
    SRGAN_FILE,
    SRRESNET_FILE,
    load_generator,
    save_generator,
)


@pytest.fixture
def folder(tiny_weights, tmp_path) -> Path:
    """A copy of the small weights to spoil."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "weights"))


@pytest.fixture
def photo_folder(tiny_photo_weights, tmp_path) -> Path:
    """The same of those with photo."""
    return Path(shutil.copytree(tiny_photo_weights, tmp_path / "photo-weights"))


@pytest.fixture
def bundled(tiny_weights, monkeypatch) -> Path:
    """Makes the small weights the bundled ones."""
    monkeypatch.setattr(module, "BUNDLED_FOLDER", tiny_weights)
    return tiny_weights


def edit_config(folder: Path, edit) -> None:
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def edit_tensors(path: Path, edit) -> None:
    """Rewrites a file with other tensors, the metadata unchanged."""
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    edit(state)
    save_file(state, path, metadata)


def assert_same(a: Generator, b: Generator) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert all(left[name].dtype == right[name].dtype for name in left)


# ------------------------------------------------------------------------------- what is stored


def test_weights_come_back_bit_for_bit(make_generator, tmp_path):
    srresnet, srgan = make_generator(1), make_generator(2)
    evaluation = {"Set5": {"srgan": {"psnr_y": 29.4}}}
    save_weights(
        tmp_path / "new" / "folder",
        srresnet.to(memory_format=torch.channels_last),
        srgan,
        adversarial=True,
        detail=0.25,
        evaluation=evaluation,
        metadata={"origin": "a test"},
    )
    weights = load_weights(tmp_path / "new" / "folder")
    assert_same(weights.srresnet, srresnet)
    assert_same(weights.srgan, srgan)
    assert weights.srgan.config == srgan.config
    assert not weights.srgan.training
    assert all(parameter.requires_grad for parameter in weights.srgan.parameters())
    assert (weights.detail, weights.adversarial, weights.revision) == (0.25, True, None)
    assert weights.source == str(tmp_path / "new" / "folder")
    assert weights.evaluation == evaluation
    assert weights.notices == ()
    with safe_open(tmp_path / "new" / "folder" / SRGAN_FILE, "pt") as file:
        assert file.metadata()["origin"] == "a test"


def test_photo_weights_come_back_too(tiny_photo_weights, make_generator):
    weights = load_weights(tiny_photo_weights)
    assert_same(weights.srgan, make_generator(2))
    assert_same(weights.photo, make_generator(5))
    assert list(weights.checksums) == [SRRESNET_FILE, SRGAN_FILE, PHOTO_FILE]
    with safe_open(tiny_photo_weights / PHOTO_FILE, "pt") as file:
        assert file.metadata()["stage"] == "srgan"


def test_photo_weights_are_those_that_the_config_lists(photo_folder, folder):
    shutil.copy(photo_folder / PHOTO_FILE, folder)
    assert load_weights(folder).photo is None
    shutil.copy(folder / CONFIG_FILE, photo_folder)
    assert load_weights(photo_folder).photo is None
    assert PHOTO_FILE not in load_weights(photo_folder).checksums


def test_weights_saved_without_photo_do_not_list_it(photo_folder, make_generator):
    save_weights(photo_folder, make_generator(), make_generator(), adversarial=True)
    assert load_weights(photo_folder).photo is None
    assert (photo_folder / PHOTO_FILE).exists()


def test_equal_weights_are_equal_bytes(make_generator, tmp_path):
    generator = make_generator()
    metadata = {name: name for name in "abcdefgh"}
    for name in ("1", "2"):
        save_generator(generator, tmp_path / name, metadata)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_loaded_weights_do_not_depend_on_the_file(folder):
    generator = load_generator(folder / SRGAN_FILE)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    with open(folder / SRGAN_FILE, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(bytes(size))
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_loading_draws_no_random_numbers(tiny_weights):
    before = torch.get_rng_state()
    load_weights(tiny_weights)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_the_files(make_generator, tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(tmp_path, make_generator(), make_generator(), adversarial=False)
    finally:
        os.umask(before)
    for name in (CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_full_disk_leaves_the_old_file(folder, make_generator, monkeypatch):
    before = (folder / SRGAN_FILE).read_bytes()

    def half(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(WeightsError, match=rf"{SRGAN_FILE} can't be written: No space left"):
        save_generator(make_generator(7), folder / SRGAN_FILE)
    assert (folder / SRGAN_FILE).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE]
    )


def test_weights_that_contradict_themselves_are_not_written(make_generator, tmp_path):
    small = make_generator(config=GeneratorConfig(channels=8, blocks=1))
    with pytest.raises(ValueError, match="differ in size"):
        save_weights(tmp_path, small, make_generator(), adversarial=True)
    with pytest.raises(ValueError, match="differ in size"):
        save_weights(tmp_path, small, small, photo=make_generator(), adversarial=True)
    with pytest.raises(ValueError, match="detail must be in"):
        save_weights(tmp_path, small, small, adversarial=True, detail=1.5)
    assert not list(tmp_path.iterdir())


def test_weights_without_adversarial_stage_say_so(make_generator, tmp_path):
    save_weights(tmp_path, make_generator(), make_generator(), adversarial=False)
    weights = load_weights(tmp_path)
    assert not weights.adversarial
    assert "not been through the adversarial stage" in weights.notices[0]


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("file", [SRRESNET_FILE, SRGAN_FILE])
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda state: state.pop("conv.weight"), "conv.weight is missing"),
        (lambda state: state.update(extra=torch.ones(2)), "extra is not part of it"),
        (
            lambda state: state.update({"head.bias": torch.zeros(4)}),
            r"head.bias has shape \(4,\), expected \(3,\)",
        ),
        (lambda state: state["bn.bias"].fill_(torch.nan), "bn.bias has values that are not fin"),
        (
            lambda state: state["blocks.0.bn1.running_var"].fill_(torch.inf),
            "blocks.0.bn1.running_var has values that are not finite",
        ),
        (lambda state: [state.pop(f"bn.{n}") for n in ("weight", "bias")], "bn.bias.*bn.weight"),
        (
            lambda state: [state.pop(name) for name in list(state) if "conv" in name],
            "missing and .* more",
        ),
        (lambda state: state.clear(), "too few"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, file, edit, message):
    edit_tensors(folder / file, edit)
    with pytest.raises(WeightsError, match=f"{file}.*{message}"):
        load_generator(folder / file)
    with pytest.raises(WeightsError, match=f"{file} is damaged: its sha256"):
        load_weights(folder)


def spoil_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_text(path: Path) -> None:
    path.write_text("<html>404</html>")


def spoil_pickle(path: Path) -> None:
    torch.save({"conv.weight": torch.ones(1)}, path)


def spoil_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_text, spoil_pickle])
def test_files_that_are_no_safetensors_are_refused(folder, spoil):
    spoil(folder / SRGAN_FILE)
    with pytest.raises(WeightsError, match=f"{SRGAN_FILE} is not a readable safetensors file"):
        load_weights(folder / SRGAN_FILE)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (Path.unlink, "is missing"),
        (spoil_folder, "can't be read"),
        (spoil_truncate, "is damaged: its sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}"),
    ],
)
def test_faults_of_a_folder_name_the_file(folder, spoil, message):
    spoil(folder / SRRESNET_FILE)
    with pytest.raises(WeightsError, match=f"{SRRESNET_FILE} {message}"):
        load_weights(folder)


@pytest.mark.parametrize(
    "spoil, message", [(Path.unlink, "is missing"), (spoil_truncate, "is damaged: its sha256 is")]
)
def test_listed_photo_weights_must_be_there_and_whole(photo_folder, spoil, message):
    spoil(photo_folder / PHOTO_FILE)
    with pytest.raises(WeightsError, match=f"{PHOTO_FILE} {message}"):
        load_weights(photo_folder)


def test_one_changed_bit_is_noticed(folder):
    data = bytearray((folder / SRGAN_FILE).read_bytes())
    data[-5] ^= 1
    (folder / SRGAN_FILE).write_bytes(data)
    load_generator(folder / SRGAN_FILE)
    with pytest.raises(WeightsError, match=f"{SRGAN_FILE} is damaged"):
        load_weights(folder)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c.pop("architecture"), "'architecture' is missing"),
        (lambda c: c["architecture"].pop("scale"), "'scale' is missing"),
        (lambda c: c["architecture"].pop("blocks"), "channels and blocks, got"),
        (lambda c: c["architecture"].update(depth=3), "channels and blocks, got .*depth"),
        (lambda c: c["architecture"].update(scale=2), "scale must be 4, got 2"),
        (lambda c: c["architecture"].update(channels=64.0), "channels must be a whole number"),
        (lambda c: c["architecture"].update(blocks=True), "blocks must be a whole number"),
        (lambda c: c["architecture"].update(blocks=-1), "blocks must be at least 1"),
        (lambda c: c.update(architecture=[1, 2]), "is not a weights config"),
        (lambda c: c.update(evaluation=[1]), "is not a weights config"),
        (lambda c: c.update(evaluation={"Set5": 30.1}), "is not a weights config"),
        (
            lambda c: c.update(evaluation={"Set5": {"srgan": {"ssim_y": "?"}}}),
            "ssim_y of srgan on Set5 must be a number, got '[?]'",
        ),
        (lambda c: c["files"].pop(SRGAN_FILE), f"'{SRGAN_FILE}' is missing"),
        (lambda c: c["files"][SRGAN_FILE].update(sha256=None), f"sha256 of {SRGAN_FILE} must"),
        (lambda c: c["files"].update({PHOTO_FILE: {}}), "'sha256' is missing"),
        (lambda c: c.update(files="none"), "is not a weights config"),
        (lambda c: c.update(files=3), "is not a weights config"),
        (lambda c: c.pop("detail"), "'detail' is missing"),
        (lambda c: c.update(detail=1.01), "detail must be in"),
        (lambda c: c.update(detail=float("nan")), "detail must be in"),
        (lambda c: c.update(detail="much"), "could not convert"),
        (lambda c: c.update(adversarial="no"), "adversarial must be true or false, got 'no'"),
    ],
)
def test_faults_of_the_config_are_named(folder, edit, message):
    edit_config(folder, edit)
    with pytest.raises(WeightsError, match=f"{CONFIG_FILE} .*{message}"):
        load_weights(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "can't be read"),
        ("", "can't be read"),
        ("[]", "expected a JSON object"),
        ("[" * 100_000, "can't be read"),
        ("\ufeff\0", "can't be read"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(folder, text, message):
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=f"{CONFIG_FILE} .*{message}"):
        load_weights(folder)


@pytest.mark.parametrize("entries", [{"channels": 10**9}, {"blocks": 10**9}, {"channels": 10**6}])
def test_a_config_cannot_make_the_program_build_something_huge(folder, entries):
    edit_config(folder, lambda config: config["architecture"].update(entries))
    with pytest.raises(WeightsError, match=f"{SRRESNET_FILE} doesn't fit"):
        load_weights(folder)


def test_weights_of_another_size_are_refused(folder):
    edit_config(folder, lambda config: config["architecture"].update(blocks=3))
    with pytest.raises(WeightsError, match=r"blocks\.2\..* is missing"):
        load_weights(folder)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"config": "{"}, {"config": "[]"}, {"config": '{"channels": 8}'}]
)
def test_a_lone_file_has_to_say_its_size(make_generator, tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    save_file(dict(make_generator().state_dict()), path, metadata)
    with pytest.raises(WeightsError, match=r"x\.safetensors doesn't say which generator"):
        load_generator(path)
    load_generator(path, config=GeneratorConfig(channels=8, blocks=2))


# ----------------------------------------------------------------------------------- the spec


def test_bundled_weights_are_the_default(bundled, monkeypatch):
    for spec in (None, "", "bundled"):
        assert load_weights(spec).source == BUNDLED
    monkeypatch.setenv("SRGAN_WEIGHTS", "")
    assert load_weights().source == BUNDLED


def test_variable_names_the_weights_unless_the_caller_does(tiny_weights, folder, monkeypatch):
    monkeypatch.setenv("SRGAN_WEIGHTS", str(tiny_weights))
    assert load_weights().source == str(tiny_weights)
    assert load_weights(folder).source == str(folder)


def test_a_lone_file_is_both_networks(folder):
    weights = load_weights(folder / SRGAN_FILE)
    assert_same(weights.srresnet, weights.srgan)
    assert_same(weights.srgan, load_generator(folder / SRGAN_FILE))
    assert weights.photo is None
    assert weights.adversarial
    assert "detail has no effect" in weights.notices[0]


def test_a_lone_file_of_the_first_stage_says_so(make_generator, tmp_path):
    save_generator(make_generator(), tmp_path / "a.safetensors", {"stage": "srresnet"})
    weights = load_weights(tmp_path / "a.safetensors")
    assert not weights.adversarial
    assert "not been through the adversarial stage" in weights.notices[0]


def test_an_existing_folder_goes_before_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    Path("user").mkdir()
    folder.rename("user/repo")
    assert load_weights("user/repo").source == "user/repo"
    Path("user/repo", CONFIG_FILE).unlink()
    with pytest.raises(WeightsError, match="user/repo is not a weights folder"):
        load_weights("user/repo")


def test_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load_weights("~/weights").source == str(folder)
    assert load_weights(f"~/weights/{SRGAN_FILE}").source == str(folder / SRGAN_FILE)


@pytest.mark.parametrize(
    "spec",
    [
        "no-such-thing",
        "./weights",
        "../other/weights",
        "/no/such/folder",
        "runs/srgan.safetensors",
        r"C:\weights\srgan",
        "user/repo/tree/main",
        "user/repo@",
        "https://huggingface.co/user/repo",
        "user/re po",
        "~nobody-by-this-name/weights",
        "x" * 5000,
        "nul\0byte",
    ],
)
def test_what_is_neither_a_path_nor_a_repository_is_refused(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"No weights at .*user/repo@revision"):
        load_weights(spec)


def test_fallback_is_the_bundled_weights_and_a_notice(bundled, folder):
    (folder / SRGAN_FILE).unlink()
    with pytest.raises(WeightsError):
        load_weights(folder)
    weights = load_weights(folder, fallback=True)
    assert weights.source == BUNDLED
    (notice,) = weights.notices
    assert notice.startswith(f"The bundled weights are in use: {folder.name}/{SRGAN_FILE} is miss")
    assert str(folder.parent) not in notice


def test_fallback_is_not_used_without_need(bundled, folder):
    weights = load_weights(folder, fallback=True)
    assert weights.source == str(folder)
    assert weights.notices == ()


def test_damaged_bundled_weights_are_an_error_even_with_fallback(folder, monkeypatch):
    monkeypatch.setattr(module, "BUNDLED_FOLDER", folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(WeightsError, match=f"{CONFIG_FILE} is missing"):
        load_weights("/no/such/folder", fallback=True)


def test_the_weights_in_the_repository_are_whole():
    weights = load_weights(BUNDLED)
    for generator in (weights.srresnet, weights.srgan, weights.photo or weights.srgan):
        assert generator.config == GeneratorConfig()
    differ = not torch.equal(weights.srresnet.head.weight, weights.srgan.head.weight)
    assert differ == weights.adversarial
    assert bool(weights.notices) == (not weights.adversarial)
    assert BUNDLED_FOLDER.name == "weights"
