"""The profile file: what is written is read again, line by line for people, and nothing else is taken."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from herald import ConfigError
from herald.profiles import Iteration, KernelFacts, OpInstance, OpProfile, Profile

KERNEL = KernelFacts("sgemm_32x32", 1.0, 1200, (132, 1, 1), (256, 1, 1), 90, 16384, 1.0, 0.125)
MM = OpProfile("aten::mm(Float[2, 2])", 0xFEED, 1234, 8, 2.0, 5000, 32, 16, 16, (KERNEL, KERNEL), "heavy", 41.5)
ADD = OpProfile("aten::add_(Float[2, 2])", 0xBEEF, 99, 8)
INSTANCES = (
    OpInstance(0, "forward", "layers.0", 10, 5000, 1234, (1, 2), (3,)),
    OpInstance(1, "other", "", 20, 700, 99, (3,), (3,)),
)
WHOLE = Profile(
    device="NVIDIA H200",
    driver="580.65",
    torch="2.11.0",
    ops=(MM, ADD),
    workload="größe",
    fingerprint="ab12",
    iteration=Iteration(3000, 1333, 2500, INSTANCES),
    created="2026-01-01T00:00:00+00:00",
    num_sms=132,
)
TIMES_ALONE = Profile("NVIDIA H200", None, "2.11.0", (ADD,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.json"


@pytest.mark.parametrize("profile", [WHOLE, TIMES_ALONE, replace(WHOLE, ops=(), iteration=None)])
def test_a_profile_is_read_as_it_was_written(path: Path, profile: Profile) -> None:
    profile.save(path)
    assert Profile.load(path, device="NVIDIA H200", torch="2.11.0") == profile
    assert Profile.load(path) == profile
    assert list(path.parent.iterdir()) == [path]


def test_every_op_kernel_and_instance_has_a_line(path: Path) -> None:
    WHOLE.save(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [sum(f'"{field}":' in line for line in lines) for field in ("signature", "duration_ns", "phase")] == [
        2,
        2,
        2,
    ]
    assert '"workload": "größe"' in "".join(lines)
    assert json.loads(path.read_text(encoding="utf-8"))["ops"][0]["key"] == "000000000000feed"


def test_the_documented_example_is_a_profile(path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "profile-format.md").read_text(encoding="utf-8")
    path.write_text(page.split("```json\n")[1].split("```")[0])
    assert Profile.load(path).ops[0].kernels[0].registers == 96


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "profile-format.md").read_text(encoding="utf-8")
    for record in (Profile, OpProfile, KernelFacts, OpInstance, Iteration):
        for field in fields(record):
            assert f"`{field.name}`" in page or f"{field.name}`" in page or f'"{field.name}"' in page


def test_an_op_is_named_without_its_operands() -> None:
    assert (MM.name, replace(MM, signature="noargs").name) == ("aten::mm", "noargs")


@pytest.mark.parametrize(("field", "value"), [("device", "NVIDIA A100"), ("torch", "2.6.0")])
def test_a_profile_of_another_device_or_torch_is_refused(path: Path, field: str, value: str) -> None:
    replace(WHOLE, **{field: value}).save(path)
    with pytest.raises(ConfigError, match=rf"p\.json' was made for {field} {value!r}, this is .*herald profile"):
        Profile.load(path, device="NVIDIA H200", torch="2.11.0")


@pytest.mark.parametrize("version", [1, 99, "2", None])
def test_another_version_of_the_format_is_refused(path: Path, version: object) -> None:
    WHOLE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    with pytest.raises(ConfigError, match=rf"made for version {version!r} of the format, this Herald reads version 2"):
        Profile.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.97])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    WHOLE.save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigError, match="p.json' is not whole JSON .*herald profile"):
        Profile.load(path)


def change(**fields: object) -> Callable[[dict], None]:
    return lambda document: document.update(fields)


def change_op(**fields: object) -> Callable[[dict], None]:
    return lambda document: document["ops"][0].update(fields)


def change_instance(**fields: object) -> Callable[[dict], None]:
    return lambda document: document["iteration"]["instances"][1].update(fields)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change_op(self_ns=float("nan")), "NaN is not a number that can be measured"),
        (change_op(self_ns=float("inf")), "Infinity is not a number"),
        (change_op(self_ns=-1), r"self_ns of ops\[0\] \(aten::mm.*\) = -1 must be a whole number in 0 .. 4294967295"),
        (change_op(self_ns=2**32), "self_ns of .* = 4294967296 must be"),
        (change_op(self_ns=1.5), "self_ns of .* = 1.5 must be a whole number"),
        (change_op(self_ns=True), "self_ns of .* = True must be"),
        (change_op(self_ns="12"), "self_ns of .* = '12' must be"),
        (change_op(calls=-0.5), "calls of .* must be a number in 0"),
        (change_op(calls=10**400), "calls of .* must be a number in 0"),
        (change_op(host_ns=10**15), "host_ns of .* must be"),
        (change_op(numel=2**64), "numel of .* must be"),
        (change_op(harm=-3), r"harm of ops\[0\]"),
        (change_op(kind="medium"), "kind of .* = 'medium' must be one of unknown, none, light, heavy"),
        (change_op(kind=[]), "kind of .* must be one of"),
        (change_op(key="xyz"), r"key of ops\[0\] .* = 'xyz' must be 16 hexadecimal digits"),
        (change_op(key=12), "key of .* = 12 must be 16"),
        (change_op(key=f"{ADD.key:016x}"), "add_.* has the key of aten::mm.*listed once"),
        (change_op(signature=3), r"signature of ops\[0\].* = 3 must be a text"),
        (change_op(colour="red"), "has the unknown field 'colour'"),
        (lambda document: document["ops"][0].pop("numel"), r"ops\[0\] .* has no 'numel'"),
        (lambda document: document["ops"].append(7), r"ops\[2\] = 7 must be an object"),
        (lambda document: document["ops"][0]["kernels"][1].update(grid=[1, 2]), r"grid of kernels\[1\].* 3 elements"),
        (lambda document: document["ops"][0]["kernels"][1].update(occupancy=1.2), r"occupancy of .* in 0 .. 1"),
        (change(ops={}), "ops of the profile = {} must be a list"),
        (change(device=None), "device of the profile = None must be a text"),
        (change(num_sms=-1), "num_sms of the profile = -1"),
        (change(iteration=[]), r"iteration of the profile = \[\] must be an object"),
        (change_instance(op=2), r"instances\[1\] refers to op 2 of 2"),
        (change_instance(op=-1), r"op of instances\[1\] = -1"),
        (change_instance(begin_ns=9), r"instances\[1\] begins at 9 ns, before .* at 10 ns.* cycle"),
        (change_instance(phase="sideward"), "phase of .* = 'sideward' must be one of forward"),
        (change_instance(reads=3), r"reads of instances\[1\] = 3 must be a list"),
        (change_instance(writes=[1, "2"]), r"writes\[1\] = '2' must be a whole number"),
    ],
)
def test_a_damaged_profile_is_refused_with_the_place(path: Path, damage: Callable[[dict], None], said: str) -> None:
    WHOLE.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=rf"p\.json' is damaged \(.*{said}.*make it again"):
        Profile.load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "is not a Herald profile"),
        (b'"herald-profile"', "is not a Herald profile"),
        (b'{"format": "other"}', "is not a Herald profile: its format must be 'herald-profile'"),
        (b'{"format": "herald-profile", "version": 2, "version": 2}', "'version' stands twice"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged|is not whole JSON"),
    ],
)
def test_another_file_is_refused(path: Path, text: bytes, said: str) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=f"p.json' .*{said}"):
        Profile.load(path)


def test_a_missing_file_is_a_clear_error(path: Path) -> None:
    with pytest.raises(ConfigError, match="p.json' cannot be read: No such file"):
        Profile.load(path)


def test_an_unwritable_folder_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="'/nowhere/p.json' cannot be written: No such file"):
        WHOLE.save("/nowhere/p.json")


def test_a_profile_that_cannot_be_written_leaves_the_old_one(path: Path) -> None:
    TIMES_ALONE.save(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(WHOLE, ops=(replace(MM, calls=float("nan")),)).save(path)
    assert Profile.load(path) == TIMES_ALONE
    assert list(path.parent.iterdir()) == [path]
