"""Holds what is in deploy/ against real validators. Run by ./test.

`deploy/validate.py KUBECONFORM`: Helm's linter and renderer, kustomize (of kubectl), kubeconform with Kubernetes' schemas and our own,
hadolint and systemd-analyze; the `restricted` Pod Security Standard; and every flag that a manifest
passes, by the very programs: `towpath … --help` fails where a flag before it is not known.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import helm_python.chart as helm
import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).parent
ROOT = DEPLOY.parent
BIN = pathlib.Path(sys.executable).parent
KUBECONFORM = pathlib.Path(sys.argv[1])
# The first with native sidecars, and the newest that the schemas know.
VERSIONS = ("1.29.0", "1.37.0")
# Kinds of others, whose schemas are not at hand.
FOREIGN = "Certificate,Issuer,ServiceMonitor"
SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
TOWPATH = ROOT / "target" / "debug" / "towpath"


def run(*command, stdin=None):
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def schemas(folder, version):
    """Kubernetes' schemas as kubeconform reads them: by file name, without the addresses they have."""
    place = pathlib.Path(folder) / version
    place.mkdir()
    for path in (SCHEMAS / f"v{version}-local-strict").glob("*.json"):
        schema = json.loads(path.read_text())
        schema.pop("$id", None)
        text = json.dumps(schema).replace("/api/_definitions.json", "_definitions.json")
        (place / path.name).write_text(text)


def conform(name, text, own, versions=VERSIONS):
    """By kubeconform, strictly, in every version."""
    for version in versions:
        run(
            KUBECONFORM,
            *("-strict", "-summary", "-skip", FOREIGN, "-kubernetes-version", version),
            *("-schema-location", f"{own}/{version}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"),
            *("-schema-location", f"{own}/{{{{.ResourceKind}}}}.schema.json"),
            "-",
            stdin=text,
        )
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        if document["kind"] == "Deployment":
            restricted(name, document["spec"]["template"]["spec"])
    return documents


def restricted(name, pod):
    """What the `restricted` Pod Security Standard asks for, as far as these pods could break it."""
    security = pod["securityContext"]
    good = security["runAsNonRoot"] and security["seccompProfile"]["type"] == "RuntimeDefault"
    good = good and not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    allowed = {"name", "configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    good = good and all(set(volume) <= allowed for volume in pod["volumes"])
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container["securityContext"]
        good = good and own["capabilities"] == {"drop": ["ALL"]} and own["allowPrivilegeEscalation"] is False
        good = good and own["readOnlyRootFilesystem"] and not own.get("privileged")
        good = good and not any("hostPort" in port for port in container.get("ports", []))
        flags(name, container["command"] + container.get("args", []))
        for probe in ("livenessProbe", "readinessProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command")
            if command:
                flags(name, command)
    if not good:
        sys.exit(f"{name}: a pod that the restricted standard refuses")


def flags(name, command):
    """Whether the program knows what it is given."""
    program, *arguments = command
    arguments = [argument.replace("$(", "").replace(")", "") for argument in arguments]
    # The slim program takes the flags of this command.
    if program.endswith("towpath-proxy"):
        arguments = ["proxy", *arguments]
    done = subprocess.run([TOWPATH, *arguments, "--help"], text=True, capture_output=True)
    if done.returncode or "Usage:" not in done.stdout:
        sys.exit(f"{name}: {' '.join(command)}:\n{done.stderr}")


def charts(own):
    folder = DEPLOY / "helm" / "towpath"
    chart = helm.Chart.load(folder)
    count = 0
    for path in sorted((DEPLOY / "helm" / "values").glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        report = helm.lint(folder, values, strict=True, namespace="towpath")
        worse = [message for message in report["messages"] if message["severity"] > 1]
        if worse or report["errors"]:
            sys.exit(f"helm lint with {path.name}: {worse} {report['errors']}")
        rendered = chart.render(values, name="towpath", namespace="towpath")
        text = "\n---\n".join(text for name, text in rendered.items() if name.endswith(".yaml"))
        count += len(conform(path.name, text, own))
    for values, why in (
        ({}, "exactly one of git.url"),
        ({"controlPlane": {"policies": {"inline": {"a.yaml": "x"}, "configMap": "y"}}}, "exactly one"),
        ({"gatway": {}}, "gatway"),
        ({"controlPlane": {"enabled": False}}, "HOST:PORT"),
        ({"controlPlane": {"replicas": 2, "persistence": {"enabled": True}, "policies": {"configMap": "y"}}}, "one replica"),
        ({"serviceMonitor": {"enabled": True}, "controlPlane": {"policies": {"configMap": "y"}}}, "expose"),
        ({"controlPlane": {"policies": {"git": {"url": "https://user:secret@git.example.com/a"}}}}, "url"),
        (gateway_at("http", 9901), "ports/0/targetPort"),
        (gateway_at("443", 8443), "ports/0/name"),
    ):
        try:
            chart.render(values, name="towpath", namespace="towpath")
        except Exception as error:
            if why in str(error):
                continue
            sys.exit(f"helm template with {values}: expected {why!r} in: {error}")
        sys.exit(f"helm template took {values}")
    return count


def gateway_at(name, port):
    ports = [{"name": name, "port": 80, "targetPort": port}]
    return {"controlPlane": {"policies": {"configMap": "y"}}, "gateway": {"ports": ports}}


def kustomize(own):
    count = 0
    for overlay in sorted((DEPLOY / "kustomize" / "overlays").iterdir()):
        text = run(BIN / "kubectl", "kustomize", overlay)
        documents = conform(overlay.name, text, own)
        count += len(documents)
        for document in documents:
            if document["kind"] == "ConfigMap":
                policies = document["data"]["mesh.yaml"]
                count += len(conform(overlay.name, policies, own, VERSIONS[-1:]))
    run(TOWPATH, "check", DEPLOY / "kustomize" / "overlays" / "control-plane" / "mesh.yaml")
    return count


def systemd():
    worst = {"towpath-control-plane.service": 2.0, "towpath-gateway.service": 2.5}
    with tempfile.TemporaryDirectory() as folder:
        for unit in sorted((DEPLOY / "systemd").glob("*.service")):
            lines = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
            arguments = lines[0].removeprefix("ExecStart=").replace("%H", "host").split()
            flags(unit.name, [argument.replace("${TOWPATH_CONTROL_PLANE}", "a:1") for argument in arguments])
            # The programs are not where the units expect them: any program will do here.
            copy = pathlib.Path(folder) / unit.name
            text = unit.read_text().replace("/usr/bin/towpath-proxy", "/bin/true").replace("/usr/bin/towpath", "/bin/true")
            copy.write_text(text)
            command = ["systemd-analyze", "verify", "--man=no", str(copy)]
            said = subprocess.run(command, text=True, capture_output=True)
            # A setting that it does not know is told, and no failure.
            if said.returncode or unit.name in said.stderr:
                sys.exit(f"systemd-analyze verify {unit.name}:\n{said.stderr}")
            limit = int(worst[unit.name] * 10)
            run("systemd-analyze", "security", "--offline=true", f"--threshold={limit}", "--no-pager", copy)


def build():
    """What the Containerfile builds is there to be built, and all that it installs; not the release, which takes long."""
    text = (DEPLOY / "container" / "Containerfile").read_text()
    [command] = [line.strip(" \\") for line in text.splitlines() if line.strip().startswith("cargo build ")]
    if "--release" not in command:
        sys.exit(f"Containerfile: {command}: no release is built")
    messages = run(*command.replace(" --release", "").split(), "--quiet", "--message-format=json")
    made = [json.loads(line).get("executable") for line in messages.splitlines()]
    made = {pathlib.Path(program).name for program in made if program}
    installed = set(re.findall(r"target/release/([\w-]+)", text))
    if not installed or installed - made:
        sys.exit(f"Containerfile: {command} makes {sorted(made)}, and what is installed is {sorted(installed)}")


def main():
    with tempfile.TemporaryDirectory() as own:
        run(TOWPATH, "schema", own)
        # Go's regular expressions repeat at most a thousand times.
        for path in pathlib.Path(own).glob("*.schema.json"):
            path.write_text(path.read_text().replace("{0,4094}", "*"))
        for version in VERSIONS:
            schemas(own, version)
        count = charts(own) + kustomize(own)
        for path in ROOT.glob("examples/*/*.yaml"):
            count += len(conform(path.name, path.read_text(), own, VERSIONS[-1:]))
        for path in (DEPLOY / "crds").glob("*.yaml"):
            count += len(conform(path.name, path.read_text(), own))
    systemd()
    run(BIN / "hadolint", DEPLOY / "container" / "Containerfile")
    build()
    if count < 50:
        sys.exit(f"only {count} objects were looked at")
    print(f"deploy: {count} objects valid in Kubernetes {' and '.join(VERSIONS)}, units and Containerfile too")


main()
