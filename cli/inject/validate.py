"""Holds the golden files against the schemas of Kubernetes, strictly.

What was valid before injection must be after it, in the first version that has native sidecars
and in the newest one the validator knows. Run by ./test, with kubernetes-validate installed.
"""

import json
import pathlib
import sys

import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).parent / "testdata"
ADMITTED = pathlib.Path(__file__).parents[2] / "control-plane" / "testdata" / "admission" / "answers"
VERSIONS = ("1.29", "1.37")


def documents(path):
    # PyYAML takes no tabs between JSON's values.
    text = path.read_text(encoding="utf-8-sig").replace("\t", " ")
    for document in yaml.safe_load_all(text):
        if document and "services" not in document:
            yield from document["items"] if document["kind"] == "List" else [document]


def mistake(document, version):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return error
    return None


valid = 0
for path in sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("*.json")]):
    pairs = zip(documents(path), documents(FOLDER / "injected" / path.name), strict=True)
    for before, after in pairs:
        for version in VERSIONS:
            if mistake(before, version):
                continue
            error = mistake(after, version)
            if error:
                sys.exit(f"{path.name} is not valid in Kubernetes {version} any more: {error}")
            valid += 1
# And pods as the webhook makes them, which an API server has filled in before.
for path in sorted(ADMITTED.glob("*.pod.json")):
    asked = json.loads((ADMITTED.parent / path.name.replace(".pod", "")).read_text())["request"]["object"]
    # Fields may be newer than the older one.
    versions = [version for version in VERSIONS if not mistake(asked, version)]
    if not versions:
        sys.exit(f"{path.name}: what was asked about is valid in no version: {mistake(asked, VERSIONS[-1])}")
    for version in versions:
        error = mistake(json.loads(path.read_text()), version)
        if error:
            sys.exit(f"{path.name} is not valid in Kubernetes {version} any more: {error}")
        valid += 1
if valid < 80:
    sys.exit(f"only {valid} documents were valid to begin with")
print(f"injected manifests: {valid} documents valid, in Kubernetes {' and '.join(VERSIONS)}")

gateway = FOLDER.parents[2] / "examples" / "gateway" / "kubernetes.yaml"
for document in documents(gateway):
    for version in VERSIONS:
        error = mistake(document, version)
        if error:
            sys.exit(f"{gateway.name} is not valid in Kubernetes {version}: {error}")
print("examples/gateway: valid")
