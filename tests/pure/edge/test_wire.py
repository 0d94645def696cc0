"""Our protos are wire-compatible with Envoy's, and the generated code is theirs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from extproc.edge.wire import ext_proc_pb2 as wire

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its classes use something that pydantic will drop one day
    from envoy_data_plane.envoy.config.core import v3 as core
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as filter_
    from envoy_data_plane.envoy.service.ext_proc import v3 as service
    from envoy_data_plane.envoy.type import v3 as type_
    from envoy_data_plane.google import protobuf as google

ROOT = Path(__file__).parents[3]
THEIRS: dict[str, Any] = {
    **{
        name: getattr(service, name)
        for name in [
            "ProcessingRequest",
            "HttpHeaders",
            "HttpBody",
            "HttpTrailers",
            "ProcessingResponse",
            "HeadersResponse",
            "BodyResponse",
            "TrailersResponse",
            "CommonResponse",
            "ImmediateResponse",
            "HeaderMutation",
            "BodyMutation",
        ]
    },
    "ProcessingMode": filter_.ProcessingMode,
    "HeaderMap": core.HeaderMap,
    "HeaderValue": core.HeaderValue,
    "HeaderValueOption": core.HeaderValueOption,
    "HttpStatus": type_.HttpStatus,
    "Struct": google.Struct,
    "Value": google.Value,
}
ENUMS = {
    "HeaderSendMode": filter_.ProcessingModeHeaderSendMode,
    "BodySendMode": filter_.ProcessingModeBodySendMode,
    "HeaderAppendAction": core.HeaderValueOptionHeaderAppendAction,
    "StatusCode": type_.StatusCode,
}
TYPES = {getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower() for name in dir(FieldDescriptor) if name.startswith("TYPE_")}
OURS: list[Descriptor] = list(wire.DESCRIPTOR.message_types_by_name.values())


def test_every_message_of_ours_is_one_of_theirs() -> None:
    assert {message.name for message in OURS} == set(THEIRS)


@pytest.mark.parametrize("field", [field for message in OURS for field in message.fields], ids=lambda field: field.full_name)
def test_number_type_label_and_oneof_are_theirs(field: FieldDescriptor) -> None:
    theirs = {field.name: field.metadata["betterproto"] for field in dataclasses.fields(THEIRS[field.containing_type.name])}[field.name]
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    assert field.number == theirs.number
    assert ("map" if is_map else TYPES[field.type]) == theirs.proto_type
    assert field.is_repeated == (theirs.repeated or is_map)
    assert (field.containing_oneof.name if field.containing_oneof else None) == theirs.group
    if is_map:
        ours = [(entry.number, TYPES[entry.type]) for entry in field.message_type.fields]
        assert ours == [(entry.number, entry.proto_type) for entry in theirs.map_meta]


@pytest.mark.parametrize(
    "field", [f for m in OURS for f in m.fields if f.message_type and f.is_repeated is False], ids=lambda f: f.full_name
)
def test_the_type_of_a_message_field_is_theirs(field: FieldDescriptor) -> None:
    (theirs,) = [theirs for theirs in dataclasses.fields(THEIRS[field.containing_type.name]) if theirs.name == field.name]
    names = re.findall(r"\w+", str(theirs.type))
    assert field.message_type.name in names, theirs.type


def all_enums() -> list[EnumDescriptor]:
    nested = [enum for message in OURS for enum in message.enum_types]
    return [*wire.DESCRIPTOR.enum_types_by_name.values(), *nested]


@pytest.mark.parametrize("enum", all_enums(), ids=lambda enum: enum.name)
def test_values_of_enums_are_theirs(enum: EnumDescriptor) -> None:
    theirs = {value.name.upper(): value.value for value in ENUMS[enum.name]}
    assert {value.name.upper(): value.number for value in enum.values}.items() <= theirs.items()


def test_bytes_of_theirs_are_read_and_bytes_of_ours_are_read() -> None:
    theirs = service.ProcessingRequest(
        request_headers=service.HttpHeaders(
            headers=core.HeaderMap(headers=[core.HeaderValue(key=":path", raw_value=b"/x")]), end_of_stream=True
        ),
        attributes={"f": google.Struct(fields={"a": google.Value(string_value="b")})},
    )
    ours = wire.ProcessingRequest.FromString(bytes(theirs))
    assert ours.request_headers.headers.headers[0].raw_value == b"/x"
    assert ours.attributes["f"].fields["a"].string_value == "b"
    assert service.ProcessingRequest.parse(ours.SerializeToString()) == theirs


def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    """As `make proto` makes it; the version of the generator may differ, what it describes may not."""
    protos = [str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")]
    argv = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *protos]
    subprocess.run(argv, cwd=ROOT, check=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2.py*")}
    assert made == {path.relative_to(ROOT) for path in (ROOT / "extproc/edge/wire").glob("*_pb2.py*")}
    for path in made:
        if path.suffix == ".py":
            assert _descriptor(tmp_path / path) == _descriptor(ROOT / path), f"run `make proto`: {path} is stale"
        else:
            assert _names(tmp_path / path) == _names(ROOT / path), f"run `make proto`: {path} is stale"


def _descriptor(path: Path) -> str:
    (line,) = [line for line in path.read_text().splitlines() if "AddSerializedFile" in line]
    return line


def _names(path: Path) -> list[str]:
    return re.findall(r"^ *(?:class|[a-zA-Z_]\w*:).*$", path.read_text(), re.MULTILINE)


def test_the_floor_of_protobuf_is_what_the_generated_code_needs() -> None:
    text = (ROOT / "extproc/edge/wire/ext_proc_pb2.py").read_text()
    found = re.search(r"# Protobuf Python Version: ([\d.]+)", text)
    assert found is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"protobuf>={found[1]}" in project["dependencies"]
    installed = importlib.metadata.version("protobuf").split(".")
    assert [int(part) for part in installed[:2]] >= [int(part) for part in found[1].split(".")[:2]]
