"""What the files of deploy/ owe to each other, to the app and to the tools that read them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath

import kubernetes_validate
import pytest
import yaml
from app_process import free_port, running_app

import app
from srgan.image import default_max_bytes

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
INGRESSES = ["ingress.yaml", "gke.yaml"]
#: Of Kubernetes; the manifests are valid from one to the other.
RELEASES = ["1.29", kubernetes_validate.latest_version()]
#: Seconds that the app takes to end after the running image is done.
WIND_UP = 10

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)
needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what follows each."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def final_stage() -> list[tuple[str, str]]:
    stages = instructions()
    last = max(index for index, (name, _) in enumerate(stages) if name == "FROM")
    return stages[last:]


def the(name: str) -> str:
    """The one instruction of that name in the final stage."""
    (value,) = [value for other, value in final_stage() if other == name]
    return value


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in the("ENV").split())


def copied() -> dict[str, str]:
    """What the final stage copies from the repository, and where in /app it goes."""
    places = {}
    for name, value in final_stage():
        if name == "COPY" and "--from" not in value:
            *sources, target = value.split()
            places |= dict.fromkeys(sources, target)
    return places


def is_ignored(path: PurePosixPath) -> bool:
    """Whether .dockerignore keeps a file from the build; the last line that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        for part in (path, *path.parents):
            at_any_depth = pattern.startswith("**/") and fnmatch(part.name, pattern[3:])
            if at_any_depth or (len(part.parts) == 1 and fnmatch(part.name, pattern)):
                ignored = not line.startswith("!")
    return ignored


def context() -> set[PurePosixPath]:
    """The repository's files that a build gets to see."""
    tops = [path for path in ROOT.iterdir() if not is_ignored(PurePosixPath(path.name))]
    files = [file for top in tops for file in (top.rglob("*") if top.is_dir() else [top])]
    paths = {PurePosixPath(file.relative_to(ROOT)) for file in files if file.is_file()}
    return {path for path in paths if not is_ignored(path)}


def render(folder: Path) -> list[dict]:
    done = subprocess.run(
        ["kubectl", "kustomize", folder], check=True, capture_output=True, text=True
    )
    return list(yaml.safe_load_all(done.stdout))


def with_ingress(ingress: str, folder: Path) -> Path:
    """A copy of the manifests with the chosen ingress."""
    copy = shutil.copytree(KUBERNETES, folder / "kubernetes")
    kustomization = copy / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8")
    assert text.count("- ingress.yaml") == 1
    kustomization.write_text(text.replace("- ingress.yaml", f"- {ingress}"), encoding="utf-8")
    return copy


@pytest.fixture
def manifests() -> dict[str, dict]:
    """By kind, as they lie there, so that what needs no kubectl runs without it."""
    files = [path for path in KUBERNETES.glob("*.yaml") if path.name != "gke.yaml"]
    objects = [
        item for path in files for item in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    kinds = {item["kind"]: item for item in objects}
    assert len(kinds) == len(objects)
    return kinds


@pytest.fixture
def pod(manifests) -> dict:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod) -> dict:
    (container,) = pod["containers"]
    return container


@pytest.fixture
def gke() -> dict[str, dict]:
    text = (KUBERNETES / "gke.yaml").read_text(encoding="utf-8")
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    """The services of compose.yaml as docker-compose understands them."""
    done = subprocess.run(
        ["docker-compose", "-f", DEPLOY / "compose.yaml", "--profile", "gpu", "config"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    return yaml.safe_load(done.stdout)["services"]


def seconds(duration: str) -> int:
    """Of 75s, or 1m15s as newer releases of Compose say."""
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration).groups()
    return 60 * int(minutes or 0) + int(rest or 0)


# ---- the image


def test_everything_that_is_copied_exists_and_reaches_the_build():
    seen = context()
    for source in [*copied(), "requirements.txt"]:
        assert any(
            path == PurePosixPath(source) or PurePosixPath(source) in path.parents for path in seen
        ), source


def test_nothing_else_reaches_the_build():
    wanted = {*copied(), "requirements.txt"}
    assert {path.parts[0] for path in context()} == wanted
    assert not [path for path in context() if path.suffix == ".pyc"]


def test_app_serves_from_what_is_copied_alone(tmp_path):
    image = tmp_path / "app"
    assert all(target in (source, "./") for source, target in copied().items())
    for path in context() - {PurePosixPath("requirements.txt")}:
        target = image / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    script = (
        "import runpy, sys\n"
        f"sys.path[0], sys.argv = {str(image)!r}, ['app.py']\n"
        f"runpy.run_path({str(image / 'app.py')!r}, run_name='__main__')"
    )
    with running_app(tmp_path, script=script) as running:
        assert running.terminate() == 0


def test_requirements_are_installed_before_the_code_is_copied():
    """So that a change of the code leaves the large layer as it is."""
    text = " ".join(f"{name} {value}\n" for name, value in instructions())
    assert text.index("COPY requirements.txt") < text.index("-r requirements.txt")
    targets = [value for name, value in final_stage() if name == "COPY"]
    assert targets[0].startswith("--from=build") and targets[-1].startswith("app.py")


def test_program_runs_as_a_number_and_gets_signals_itself():
    user, group = the("USER").split(":")
    assert int(user) > 0 and int(group) > 0
    assert the("STOPSIGNAL") == "SIGTERM"
    assert json.loads(the("ENTRYPOINT")) == ["python"]
    assert json.loads(the("CMD")) == ["app.py"]


def test_image_serves_at_the_apps_port_to_everyone():
    assert int(the("EXPOSE")) == int(environment()["GRADIO_SERVER_PORT"]) == app.PORT
    assert environment()["GRADIO_SERVER_NAME"] == "0.0.0.0"


@pytest.mark.parametrize("status, healthy", [(200, True), (503, False), (None, False)])
def test_health_check_tells_healthy_from_sick_and_absent(status, healthy):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    command = json.loads(the("HEALTHCHECK").split("CMD", 1)[1])
    assert command[0] == "python"
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if status is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free_port() if status is None else server.server_port
        variables = {"GRADIO_SERVER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *command[1:]], env=variables, capture_output=True)
        if status is not None:
            server.shutdown()
    assert (done.returncode == 0) == healthy


# ---- Compose


@needs_compose
def test_compose_builds_this_image_and_serves_at_the_apps_port(services):
    assert set(services) == {"app", "gpu"}
    for service in services.values():
        build = service["build"]
        assert (Path(build["context"]) / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        assert [(int(port["published"]), port["target"]) for port in service["ports"]] == [
            (app.PORT, app.PORT)
        ]


@needs_compose
def test_compose_locks_the_container_in(services):
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["pids_limit"]
        assert float(service["cpus"]) == int(service["environment"]["OMP_NUM_THREADS"])


@needs_compose
def test_compose_lets_the_running_image_finish(services):
    for service in services.values():
        assert seconds(service["stop_grace_period"]) >= app.GRACE + WIND_UP


@needs_compose
def test_only_the_gpu_service_asks_for_a_gpu_and_only_when_named(services):
    assert "profiles" not in services["app"] and "deploy" not in services["app"]
    assert services["gpu"]["profiles"] == ["gpu"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "cpu" not in services["gpu"]["build"]["args"]["TORCH_INDEX"]


# ---- Kubernetes


@needs_kubectl
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("ingress", INGRESSES)
def test_kubernetes_takes_every_object(ingress, release, tmp_path):
    objects = render(with_ingress(ingress, tmp_path))
    foreign = {item["kind"] for item in objects if "cloud.google.com" in item["apiVersion"]}
    assert foreign == ({"BackendConfig"} if ingress == "gke.yaml" else set())
    own = [item for item in objects if item["kind"] not in foreign]
    assert {item["kind"] for item in own} == {
        *("Namespace", "Deployment", "Service", "Ingress"),
        *("HorizontalPodAutoscaler", "PodDisruptionBudget"),
    }
    for item in own:
        kubernetes_validate.validate(item, release, strict=True)


@needs_kubectl
def test_strict_validation_notices_a_misspelt_field(tmp_path):
    (deployment,) = (item for item in render(KUBERNETES) if item["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, RELEASES[-1], strict=True)


@needs_kubectl
@pytest.mark.parametrize(
    "tag, reference", [('newTag: "2"', ":2"), (f"digest: sha256:{64 * 'a'}", f"@sha256:{64 * 'a'}")]
)
def test_image_is_named_in_one_place(tag, reference, tmp_path):
    copy = with_ingress("ingress.yaml", tmp_path)
    kustomization = copy / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8")
    text = text.replace("newName: srgan", "newName: example.com/a/b").replace('newTag: "1"', tag)
    kustomization.write_text(text, encoding="utf-8")
    objects = render(copy)
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"example.com/a/b{reference}"
    assert {item["metadata"].get("namespace", "srgan") for item in objects} == {"srgan"}


def test_probes_ask_the_app_for_its_health(container, gke):
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    source = (ROOT / "app.py").read_text(encoding="utf-8")
    for probe in probes:
        assert f'add_api_route("{probe["httpGet"]["path"]}"' in source
        assert probe["httpGet"]["port"] == container["ports"][0]["name"]
    assert container["ports"][0]["containerPort"] == app.PORT
    check = gke["BackendConfig"]["spec"]["healthCheck"]
    assert (check["requestPath"], check["port"]) == (probes[0]["httpGet"]["path"], app.PORT)


def test_pod_lets_the_running_image_finish(pod, container, gke):
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(pause) + app.GRACE + WIND_UP
    draining = gke["BackendConfig"]["spec"]["connectionDraining"]["drainingTimeoutSec"]
    assert draining >= app.GRACE


def test_pod_has_no_privileges(pod, container):
    user, group = map(int, the("USER").split(":"))
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"]) == (user, group)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@needs_compose
def test_every_folder_that_is_written_to_is_writable(pod, container, services):
    written = [Path(environment()[name]) for name in ("HOME", "GRADIO_TEMP_DIR", "HF_HOME")]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    assert all(volumes[name]["emptyDir"]["sizeLimit"] for name in mounts.values())
    service = services["app"]
    places = [Path(mount.split(":")[0]) for mount in service["tmpfs"]]
    places += [
        Path(volume["target"] if isinstance(volume, dict) else volume.split(":")[1])
        for volume in service["volumes"]
    ]
    for folder in written:
        for writable in (mounts, places):
            assert {folder, *folder.parents} & set(writable), folder


def test_ingress_keeps_visitors_at_their_replica_and_takes_the_largest_file(manifests, gke):
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = manifests["Ingress"]["metadata"]["annotations"]
    assert annotations[f"{prefix}affinity"] == "cookie"
    megabytes = re.fullmatch(r"(\d+)m", annotations[f"{prefix}proxy-body-size"])[1]
    assert int(megabytes) * 2**20 > default_max_bytes() * 1.01
    assert gke["BackendConfig"]["spec"]["sessionAffinity"]["affinityType"] == "GENERATED_COOKIE"
    assert manifests["Service"]["spec"]["sessionAffinity"] == "ClientIP"


def test_objects_refer_to_each_other(manifests, container, gke):
    service, deployment = manifests["Service"], manifests["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == container["ports"][0]["name"]
    (rule,) = manifests["Ingress"]["spec"]["rules"]
    backends = [
        rule["http"]["paths"][0]["backend"]["service"],
        gke["Ingress"]["spec"]["defaultBackend"]["service"],
    ]
    for backend in backends:
        assert backend == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
    annotation = service["metadata"]["annotations"]["cloud.google.com/backend-config"]
    assert json.loads(annotation)["default"] == gke["BackendConfig"]["metadata"]["name"]
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_two_replicas_at_least(manifests):
    """The autoscaler sees to it; a number in the Deployment would undo its work."""
    assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 2
    assert "replicas" not in manifests["Deployment"]["spec"]
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
