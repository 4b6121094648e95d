"""A small Hugging Face Hub for the real client: model repositories over HTTP, and their faults.

It keeps everything in memory and speaks the part of the protocol that creating, pushing (Git LFS,
so the client needs HF_HUB_DISABLE_XET=1) and pulling take. `create` and `commit` stand for what
people do on the Hub's pages.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

#: Token -> who it is of, and whether it may write to what is theirs.
TOKENS = {"hf_writer": ("user", True), "hf_reader": ("user", False), "hf_other": ("other", True)}
#: Faults of the contents of files, unlike `silent` and `500`, which concern every request.
CONTENT_FAULTS = ("missing", "truncated", "corrupt", "drip")
FAULTS = ("silent", "500", *CONTENT_FAULTS)
#: Files that a repository keeps with Git LFS.
LARGE = (".safetensors", ".png")


@dataclass(frozen=True)
class File:
    """Contents, and the title of the commit that they came with."""

    data: bytes
    title: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """Git's name for the contents."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, changes: dict[str, bytes], branch: str, title: str) -> str:
        """Appends a commit to a branch; returns its name."""
        files = dict(self.commits.get(self.branches.get(branch), {}))
        files |= {path: File(data, title) for path, data in changes.items()}
        commit = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class Refusal(Exception):
    """An answer that is an error, with the Hub's own code and message in the headers."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


class HubServer(http.server.ThreadingHTTPServer):
    """Serves from its creation on, until `stop`.

    Attributes:
        url: for HF_ENDPOINT.
        repositories: by name, `user/repo`.
        fault: one of FAULTS, or None.
        fault_at: the fault is only of requests in which this is found, e.g. `PUT /lfs`; faults of
            contents are only of weights.
        requests: what has been asked for, e.g. `HEAD /user/repo/resolve/main/config.json`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.fault: str | None = None
        self.fault_at = ""
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}  # by sha256, for Git LFS
        self._running = True
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Clients may leave in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def create(self, name: str, *, private: bool = False) -> Repository:
        """Makes a repository as the Hub does, with a first commit that holds .gitattributes."""
        repository = self.repositories[name] = Repository(private)
        repository.add({".gitattributes": b"*.safetensors filter=lfs\n"}, "main", "initial commit")
        return repository

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Changes files as a person would on the Hub's pages; returns the commit."""
        repository = self.repositories.get(name) or self.create(name)
        return repository.add(files, branch, f"Upload {', '.join(files)}")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The contents at a branch, tag or commit."""
        repository = self.repositories[name]
        commit = (repository.branches | repository.tags).get(revision, revision)
        return {path: file.data for path, file in repository.commits[commit].items()}

    def stop(self) -> None:
        """From now on connections are refused."""
        self.fault = None
        if self._running:
            self._running = False
            self.shutdown()
            self.server_close()


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = {
    "GET /api/whoami-v2": "whoami",
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "validate",
    f"GET /api/models/{NAME}": "info",
    f"GET /api/models/{NAME}/revision/{REVISION}": "info",
    f"GET /api/models/{NAME}/refs": "refs",
    f"POST /api/models/{NAME}/paths-info/{REVISION}": "paths_info",
    f"POST /api/models/{NAME}/branch/{REVISION}": "branch",
    f"POST /api/models/{NAME}/tag/{REVISION}": "tag",
    f"POST /api/models/{NAME}/preupload/{REVISION}": "preupload",
    f"POST /api/models/{NAME}/commit/{REVISION}": "commit",
    rf"POST /{NAME}\.git/info/lfs/objects/batch": "batch",
    r"PUT /lfs/(?P<oid>\w{64})": "put",
    r"POST /lfs/(?P<oid>\w{64})/verify": "verify",
    f"HEAD /{NAME}/resolve/{REVISION}/(?P<path>.+)": "resolve",
    f"GET /{NAME}/resolve/{REVISION}/(?P<path>.+)": "resolve",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. Handlers return what is sent as JSON, or None where they have answered."""

    server: HubServer

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.request_line = f"{self.command} {path}"
        self.query = urllib.parse.parse_qs(query)
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append(self.request_line)
        while self.fails("silent"):
            time.sleep(0.02)
        try:
            if self.fails("500"):
                raise Refusal(500)
            self.writer = self.identify()
            for pattern, handler in ROUTES.items():
                match = re.fullmatch(pattern, self.request_line)
                if match:
                    parts = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items()}
                    result = getattr(self, handler)(**parts)
                    if result is not None:
                        self.send(200, json.dumps(result).encode())
                    return
            raise Refusal(404)
        except Refusal as refusal:
            self.send(refusal.status, headers=refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, status: int, data: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass

    def fails(self, fault: str) -> bool:
        hub = self.server
        return hub.fault == fault and re.search(hub.fault_at, self.request_line) is not None

    # ------------------------------------------------------------------------------- who and what

    def identify(self) -> str | None:
        """The user as whom the request may write, else None; sets `reader`."""
        token = (self.headers["Authorization"] or "")[len("Bearer ") :]
        if token and token not in TOKENS:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        self.reader, may_write = TOKENS.get(token, (None, False))
        return self.reader if may_write else None

    def repository(self, name: str, *, write: bool = False) -> Repository:
        repository = self.server.repositories.get(name)
        owner = name.partition("/")[0]
        if repository is None or (repository.private and self.reader != owner):
            raise Refusal(404 if self.reader else 401, "RepoNotFound")
        if write and self.writer != owner:
            raise Refusal(403, message=f"You don't have the rights to write to {name}")
        return repository

    def resolved(self, repository: Repository, revision: str) -> str:
        commit = (repository.branches | repository.tags).get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, "RevisionNotFound")
        return commit

    def whoami(self) -> dict:
        if self.reader is None:
            raise Refusal(401)
        return {"name": self.reader, "type": "user", "orgs": []}

    def info(self, name: str, revision: str = "main") -> dict:
        repository = self.repository(name)
        commit = self.resolved(repository, revision)
        siblings = [
            {"rfilename": path, **(self.details(path, file) if "blobs" in self.query else {})}
            for path, file in repository.commits[commit].items()
        ]
        return {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}

    def details(self, path: str, file: File) -> dict:
        details = {"size": len(file.data), "blobId": file.blob}
        if path.endswith(LARGE):
            details["blobId"] = "0" * 40  # of the pointer
            details["lfs"] = {"sha256": file.sha256, "size": len(file.data), "pointerSize": 132}
        return details

    def refs(self, name: str) -> dict:
        repository = self.repository(name)
        return {
            "branches": self.listed("heads", repository.branches),
            "tags": self.listed("tags", repository.tags),
            "converts": [],
        }

    def listed(self, kind: str, refs: dict[str, str]) -> list[dict]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
            for name, commit in refs.items()
        ]

    def paths_info(self, name: str, revision: str) -> list[dict]:
        repository = self.repository(name)
        files = repository.commits[self.resolved(repository, revision)]
        form = urllib.parse.parse_qs(self.body.decode())
        return [
            {
                "type": "file",
                "path": path,
                "size": len(files[path].data),
                "oid": files[path].blob,
                "lastCommit": {
                    "id": "0" * 40,
                    "title": files[path].title,
                    "date": "2024-01-01T00:00:00.000Z",
                },
            }
            for path in form["paths"]
            if path in files
        ]

    # ------------------------------------------------------------------------------------ pushing

    def create(self) -> dict:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self.reader
        name = f"{owner}/{wanted['name']}"
        if self.writer != owner:
            raise Refusal(403, message=f"You don't have the rights to create {name}")
        if name in self.server.repositories:
            raise Refusal(409, message="You already created this model repo")
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.create(name, private=bool(private))
        return {"url": f"{self.server.url}/{name}"}

    def validate(self) -> dict:
        return {"errors": [], "warnings": []}

    def branch(self, name: str, revision: str) -> dict:
        repository = self.repository(name, write=True)
        if revision in repository.branches:
            raise Refusal(409, message="Reference already exists")
        start = json.loads(self.body).get("startingPoint", "main")
        repository.branches[revision] = self.resolved(repository, start)
        return {}

    def tag(self, name: str, revision: str) -> dict:
        repository = self.repository(name, write=True)
        wanted = json.loads(self.body)["tag"]
        if wanted in repository.tags:
            raise Refusal(409, message="Tag reference exists already")
        repository.tags[wanted] = self.resolved(repository, revision)
        return {}

    def preupload(self, name: str, revision: str) -> dict:
        repository = self.repository(name, write=True)
        files = repository.commits[self.resolved(repository, revision)]
        answer = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            large = path.endswith(LARGE)
            file = files.get(path)
            oid = file and (file.sha256 if large else file.blob)
            mode = "lfs" if large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def batch(self, name: str) -> dict:
        self.repository(name, write=True)
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.server.large:
                href = f"{self.server.url}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str) -> dict:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, message="these are other bytes")
        self.server.large[oid] = self.body
        return {}

    def verify(self, oid: str) -> dict:
        if len(self.server.large.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404)
        return {}

    def commit(self, name: str, revision: str) -> dict:
        repository = self.repository(name, write=True)
        if revision not in repository.branches:
            raise Refusal(404, "RevisionNotFound")
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        parent = header["value"].get("parentCommit", repository.branches[revision])
        if parent != repository.branches[revision]:
            raise Refusal(412, message="A commit has happened since")
        changes = {}
        for operation in operations:
            entry = operation["value"]
            if operation["key"] == "lfsFile":
                changes[entry["path"]] = self.server.large[entry["oid"]]
            else:
                changes[entry["path"]] = base64.b64decode(entry["content"])
        commit = repository.add(changes, revision, header["value"]["summary"])
        return {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit}

    # ------------------------------------------------------------------------------------ pulling

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        commit = self.resolved(repository, revision)
        file = repository.commits[commit].get(path)
        weights = path.endswith(".safetensors")
        if file is None or (weights and self.fails("missing")):
            raise Refusal(404, "EntryNotFound")
        data = file.data
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{file.sha256}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if weights and self.fails("truncated"):
            data = data[: len(data) // 2]
        elif weights and self.fails("corrupt"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif weights:
            while data and self.fails("drip"):
                self.wfile.write(data[:100])
                data = data[100:]
                time.sleep(0.1)
        self.wfile.write(data)
