"""Which networks can be named, what a file of an own architecture may hold, and that nothing in it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ultralytics.nn.tasks import DetectionModel

from models.architecture import ArchitectureError, network_names, plain_name, read_architecture
from models.network import build_network, head_strides

OWN = {
    "nc": 3,
    "scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]},
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 2, "C2f", [128, True]]],
    "head": [[-1, 1, "Conv", [256, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]],
}


def own(folder: Path, name: str = "boards.yaml", **changes: object) -> str:
    (folder / name).write_text(yaml.safe_dump(OWN | changes))
    return str(folder / name)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("yolo11n", "yolo11n.yaml"),
        ("yolov8s-p2", "yolov8s-p2.yaml"),
        ("yolov5n-p6", "yolov5n-p6.yaml"),
        ("yolov9t", "yolov9t.yaml"),
        ("yolov3-tiny", "yolov3-tiny.yaml"),
        ("yolov5nu", "yolov5n.yaml"),
        ("yolov5n6u", "yolov5n-p6.yaml"),
        ("yolov8n-ghost-p6.yaml", "yolov8n-ghost-p6.yaml"),
    ],
)
def test_read_architecture__names_the_network_that_ultralytics_builds(name: str, file: str) -> None:
    ours, theirs = build_network(name, 5), DetectionModel(file, nc=5, verbose=False)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert head_strides(ours) == theirs.stride.tolist()
    assert ours.save == theirs.save and [layer.f for layer in ours.model] == [layer.f for layer in theirs.model]


def test_network_names__every_family_and_size() -> None:
    families = {"yolov3", "yolov5n-p6", "yolov6m", "yolov8x-ghost-p2", "yolov9e", "yolo11l", "yolo12x"}
    assert families < set(network_names())
    assert not [name for name in network_names() if name.startswith(("yolov10", "yolo26")) or "seg" in name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo26n", r"^yolo26n: has an end-to-end head, which is not supported yet: use yolo11 or yolo12$"),
        ("yolov10s", r"^yolov10s: has an end-to-end head"),
        ("yolo11", r"^yolo11: has no size: give one of yolo11n, yolo11s, yolo11m, yolo11l, yolo11x$"),
        ("yolov8q", r"^yolov8q: no detector of ultralytics 8\.\S+ has this name: did you mean yolov8"),
        ("yolo11n.pt", r"^yolo11n\.pt: is a file: give the name of the network, yolo11n; a file of weights belongs in"),
        ("YOLOv8n", r"did you mean yolov8n or"),
        ("yolov8n-seg", r"^yolov8n-seg: is for another task \(seg\): only detectors can be trained$"),
        ("tests", r"^tests: is a folder\. Give the name"),
        ("resnet50", r"no detector .* use for example yolo11l, yolov8n-p2 or the path of a \.yaml$"),
        ("missing.yaml", r"^missing\.yaml: not a file, and not an Ultralytics network\. Check the path\.$"),
        ("yolo11n-seg.yaml", r"^yolo11n-seg\.yaml: not a file, and not an Ultralytics network"),
    ],
)
def test_read_architecture__says_what_to_give_instead(name: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        read_architecture(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": [[[2], 1, "Segment", ["nc", 32, 256]]]}, r"its last layer is Segment: only detectors, which end in"),
        ({"end2end": True}, r"has an end-to-end head"),
        ({"head": [[[2], 1, "v10Detect", ["nc"]]]}, r"has an end-to-end head"),
        ({"head": [[[2], 1, "Detect", ["nc"]]] * 2}, r"^layer 3: Detect: only the last layer can be a head$"),
        ({"scale": ["n"]}, r"boards\.yaml: scale \['n'\]: must be one of n, s$"),
        ({"reg_max": 1}, r"^reg_max: 1: must be a whole number of at least 2$"),
        ({"reg_max": "16"}, r"^reg_max: 16: must be a whole number"),
        ({"head": None}, r"^head: must be a list of rows"),
        ({"backbone": [[-1, 1, "Conv"]]}, r"^backbone: \[-1, 1, 'Conv'\]: must be \[from, repeats"),
        ({"backbone": [[-1, 1, "Konv", [64, 3, 2]]]}, r"^layer 0: Konv: is no layer of ultralytics"),
    ],
)
def test_read_architecture__refuses_what_is_no_detector(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        read_architecture(own(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "__import__('pathlib').Path('harm').touch()"},
        {"activation": "nn.SiLU(__import__('pathlib').Path('harm').touch())"},
        {"activation": "nn.modules.os.system('touch harm')"},
        {"activation": "nn.SiLU"},
        {"backbone": [[-1, 1, "torch_safe_load", ["harm.pt"]]]},  # a function that unpickles
        {"backbone": [[-1, 1, "YAML", ["harm"]]]},
        {"backbone": [[-1, 1, "nn.functional", []]]},
        {"backbone": [[-1, 1, "nn.init.torch.hub.load", []]]},
        {"backbone": [[-1, 1, "torchvision.ops.misc", []]]},
        {"backbone": [[-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2]]]},  # which downloads weights
        {"backbone": [[-1, 1, "TorchVision", [512, "resnet18"]]]},
    ],
)
def test_build_network__runs_nothing_that_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchitectureError):
        build_network({**OWN, **changes}, 3)
    assert not (tmp_path / "harm").exists()


def test_read_architecture__activation_of_torch(tmp_path: Path) -> None:
    network = build_network(own(tmp_path, activation="torch.nn.LeakyReLU(negative_slope=0.1)"), 2)
    assert type(network.model[0].act).__name__ == "LeakyReLU" and network.model[0].act.negative_slope == 0.1
    assert type(build_network("yolo11n", 2).model[0].act).__name__ == "SiLU"  # the next network has its own


def test_read_architecture__scale_from_the_file_name_or_the_file(tmp_path: Path) -> None:
    def width(network: str) -> int:
        return build_network(network, 2).model[0].conv.out_channels

    own(tmp_path, "yolov8-boards.yaml", scale="s")
    assert width(str(tmp_path / "yolov8-boards.yaml")) == 32
    assert width(str(tmp_path / "yolov8n-boards.yaml")) == 16  # the letter in the name comes first
    assert width(own(tmp_path)) == 16  # as with Ultralytics, the first of the scales
    with pytest.raises(ArchitectureError, match=r"scale m: must be one of n, s$"):
        read_architecture(str(tmp_path / "yolov8m-boards.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: " + "[" * 5000, r"own\.yaml: is nested too deeply"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 10}]\n" for i in range(1, 12)), r"values"),
        ("a: &a [*a]", r"values"),
    ],
)
def test_read_architecture__is_not_harmed_by_a_small_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ArchitectureError, match=message):
        read_architecture(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": [[-1, 1, "Conv", [64, 3, 2, "no", "such"]]]},
        {"backbone": [[7, 1, "Conv", [64, 3, 2]]]},
        {"head": [[[0, 2], 1, "Concat", [1]], [[3], 1, "Detect", ["nc"]]]},  # maps of two sizes
    ],
)
def test_build_network__says_in_one_line_that_layers_do_not_go_together(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(ArchitectureError, match=r"^boards\.yaml: cannot be built \(\w+: .*\)$"):
        build_network(own(tmp_path, **changes), 3)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("yolo11n.yaml", "yolo11n"),
        ("/somewhere/yolov5su.pt", "yolov5s"),
        ("C:\\somewhere\\yolov5x6u.pt", "yolov5x-p6"),
        ("yolov8-p2.yaml", "yolov8-p2"),
        ("boards.yaml", "boards"),
    ],
)
def test_plain_name(file: str, name: str) -> None:
    assert plain_name(file) == name


def test_class_width__stays_when_the_number_of_classes_is_another() -> None:
    """As in a file of COCO's 80 classes, from which a training on 8 classes starts."""
    network = build_network(read_architecture("yolo11n") | {"class_width": 80}, 8)
    coco = build_network("yolo11n", 80)
    differing = {key for key, tensor in coco.state_dict().items() if tensor.shape != network.state_dict()[key].shape}
    assert differing == {f"model.23.cv3.{level}.2.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert (network.yaml["nc"], network.model[-1].nc, network.model[-1].no) == (8, 8, 72)
