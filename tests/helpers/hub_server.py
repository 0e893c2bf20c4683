"""Serve a Hub on loopback, in memory: the endpoints that create, push and read model repositories.

    with hub_server.serve() as hub:   # hub.url is an HF_ENDPOINT; the tokens below know two users and three rights

Its answers have the status, headers and JSON that the official client reads; nothing more.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


WRITER, READER, OTHER_USER, FINE = "hf_writes", "hf_reads", "hf_other", "hf_fine"
USERS = {  # the whoami answer of each token
    WRITER: {"name": "ada", "orgs": [{"name": "lab", "roleInOrg": "write"}], "role": "write"},
    READER: {"name": "ada", "orgs": [], "role": "read"},
    OTHER_USER: {"name": "eve", "orgs": [], "role": "write"},
    FINE: {"name": "ada", "orgs": [], "role": "fineGrained"},
}
LFS = ("*.safetensors", "*.png", "*tfevents*")


class File(NamedTuple):
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:  # git's
        content = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            self.sha256.encode(),
            len(self.content),
        )

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        found = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        return {**found, "lfs": lfs} if self.is_lfs else found


class Repo:
    """Commits, each a complete {path: File}; a branch names one of them."""

    def __init__(self, private: bool):
        self.private, self.commits, self.log = private, {}, []
        self.branches: dict[str, str] = {}
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, File], title: str) -> str:
        oid = hashlib.sha1(f"{len(self.log)} {branch} {title} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.log.append({"id": oid, "title": title, "branch": branch})
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server: its repositories, the requests it got, and the requests it refuses."""

    daemon_threads = True

    def __init__(self, part: int):
        super().__init__(("127.0.0.1", 0), Handler)
        self.part = part
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []  # "PUT /lfs/..."
        self.refuse = ""  # a pattern; matching requests are answered with `status`
        self.status: int | str = 400  # or one of FAULTS
        self.headers: dict[str, str] = {}  # headers of that answer
        self.is_over = threading.Event()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository."""
        repo = self.repos[name]
        return {path: file.content for path, file in repo.commits[repo.resolve(revision)].items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, status: int, content: Any = None, **headers: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        headers = {"Content-Length": len(body), "Content-Type": "application/json", **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str, message: str, **headers: Any) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    @property
    def user(self) -> dict[str, Any] | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, name: str) -> bool:
        owner, user = name.split("/")[0], self.user
        names = (
            [] if user is None or user["role"] != "write" else [user["name"], *(org["name"] for org in user["orgs"])]
        )
        return owner in names

    def open(self, name: str, revision: str | None = None) -> tuple[Repo, str] | None:
        """Return the repository and the commit, or None after sending an error."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.may_write(name)):
            self.fail(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repo.resolve(unquote(revision or "main"))
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {url.path}"
        self.server.requests.append(request)
        if self.server.refuse and re.search(self.server.refuse, request):
            if isinstance(self.server.status, str):
                return FAULTS[self.server.status](self)
            return self.fail(self.server.status, "", "refused by the test", **self.server.headers)
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, request):
                method(self, *match.groups())
                return
        self.fail(404, "", f"no such endpoint: {request}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    # --- Faults ---

    def hang(self):
        self.server.is_over.wait(60)
        self.close_connection = True

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_in(self):
        self.answer(200, b"<html><form>Welcome to our network</form></html>", Content_Type="text/html")

    # --- Users and repositories ---

    def whoami(self):
        if self.user is None:
            return self.fail(401, "", "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": self.user["role"]}
        if token["role"] == "fineGrained":
            entity = {"type": "user", "name": self.user["name"]}
            token["fineGrained"] = {"global": [], "scoped": [{"entity": entity, "permissions": ["repo.content.read"]}]}
        self.answer(200, {**self.user, "type": "user", "auth": {"type": "access_token", "accessToken": token}})

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user['name']}/{asked['name']}"
        if not self.may_write(name):
            return self.fail(403, "", f"You don't have the rights to create a model under the namespace {name}")
        url = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if name in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo", **url})
        self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, url)

    def info(self, name: str, revision: str | None = None):
        if (found := self.open(name, revision)) is None:
            return
        repo, commit = found
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        self.answer(200, {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings})

    def refs(self, name: str):
        if found := self.open(name):
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in found[0].branches.items()
            ]
            self.answer(200, {"branches": branches, "tags": [], "converts": []})

    def history(self, name: str, revision: str):
        if found := self.open(name, revision):
            stamp = {"date": "2026-01-01T00:00:00.000Z", "authors": [{"user": "ada"}], "message": ""}
            self.answer(200, [{**stamp, "id": line["id"], "title": line["title"]} for line in found[0].log[::-1]])

    def branch(self, name: str, branch: str):
        if (found := self.open(name)) is None:
            return
        repo, branch = found[0], unquote(branch)
        if branch in repo.branches:
            return self.fail(409, "", "Reference already exists")
        asked = json.loads(self.body or b"{}")
        repo.branches[branch] = repo.resolve(asked.get("startingPoint") or "main")
        self.answer(200)

    # --- Up ---

    def preupload(self, name: str, revision: str):
        if not self.may_write(name):
            return self.fail(403, "", "Forbidden: you may not write here")
        if (found := self.open(name, revision)) is None:
            return
        there, modes = found[0].commits[found[1]], []
        for file in json.loads(self.body)["files"]:
            old = there.get(file["path"])
            is_lfs = file["size"] > 2**20 or any(fnmatch(file["path"], pattern) for pattern in LFS)
            mode = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            modes.append({**mode, "oid": old and (old.sha256 if old.is_lfs else old.oid)})
        self.answer(200, {"files": modes})

    def batch(self, name: str):
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            upload: dict[str, Any] = {"href": f"{self.server.url}/lfs/{oid}"}
            if size > self.server.part:
                count = -(-size // self.server.part)
                parts = {f"{n:05d}": f"{self.server.url}/lfs/{oid}/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{self.server.url}/lfs/{oid}/done",
                    "header": {"chunk_size": str(self.server.part), **parts},
                }
            actions = {"upload": upload, "verify": {"href": f"{self.server.url}/lfs/{oid}/verify"}}
            objects.append({**asked, **({} if oid in self.server.objects else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str | None = None):
        if part is None:
            self.server.objects[oid] = self.body
        else:
            self.server.parts.setdefault(oid, {})[int(part)] = self.body
        self.answer(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def join(self, oid: str):
        parts = self.server.parts.pop(oid)
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self.server.objects[oid] = b"".join(parts[n] for n in numbers)
        self.answer(200)

    def verify(self, oid: str):
        right = hashlib.sha256(self.server.objects.get(oid, b"")).hexdigest() == oid
        self.answer(200) if right else self.fail(422, "", "the object does not match its hash")

    def commit(self, name: str, revision: str):
        if not self.may_write(name):
            return self.fail(403, "", "Forbidden: you may not write here")
        if (found := self.open(name, revision)) is None:
            return
        repo, commit = found
        files, title = dict(repo.commits[commit]), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    files[value["path"]] = File(self.server.objects[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
        oid = repo.commit(unquote(revision), files, title)
        self.answer(200, {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    # --- Down ---

    def tree(self, name: str, revision: str, folder: str | None = None):
        if (found := self.open(name, revision)) is None:
            return
        prefix = f"{unquote(folder)}/" if folder else ""
        entries = [file.entry(path) for path, file in found[0].commits[found[1]].items() if path.startswith(prefix)]
        if prefix and not entries:
            return self.fail(404, "EntryNotFound", "no such folder", X_Repo_Commit=found[1])
        self.answer(200, entries)

    def paths(self, name: str, revision: str):
        if found := self.open(name, revision):
            there = found[0].commits[found[1]]
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.answer(200, [there[path].entry(path) for path in asked if path in there])

    def download(self, name: str, revision: str, path: str):
        if (found := self.open(name, revision)) is None:
            return
        repo, commit = found
        file = repo.commits[commit].get(unquote(path))
        if file is None:
            return self.fail(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{file.oid}"', "Accept_Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X_Linked_Etag": f'"{file.sha256}"', "X_Linked_Size": len(file.content)}
        content, status = file.content, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.answer(status, content, **headers)


FAULTS = {  # failures of the network or of the Hub
    "never answers": Handler.hang,
    "resets": Handler.reset,
    "portal": lambda self: self.answer(302, b"", Location=f"{self.server.url}/login"),
    "page": Handler.log_in,
    "empty": lambda self: self.answer(200, b""),
    "list": lambda self: self.answer(200, []),
    "other": lambda self: self.answer(200, {"hello": None}),
}
MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES = [  # the first match counts
    (r"GET /login", Handler.log_in),
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", lambda self: self.answer(200, {"errors": [], "warnings": []})),
    (rf"GET {MODEL}", Handler.info),
    (rf"GET {MODEL}/revision/([^/]+)", Handler.info),
    (rf"GET {MODEL}/refs", Handler.refs),
    (rf"GET {MODEL}/commits/([^/]+)", Handler.history),
    (rf"POST {MODEL}/branch/([^/]+)", Handler.branch),
    (rf"POST {MODEL}/preupload/([^/]+)", Handler.preupload),
    (rf"POST {MODEL}/commit/([^/]+)", Handler.commit),
    (rf"GET {MODEL}/tree/([^/]+)", Handler.tree),
    (rf"GET {MODEL}/tree/([^/]+)/(.+)", Handler.tree),
    (rf"POST {MODEL}/paths-info/([^/]+)", Handler.paths),
    (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.put),
    (r"PUT /lfs/(\w+)/(\d+)", Handler.put),
    (r"POST /lfs/(\w+)/done", Handler.join),
    (r"POST /lfs/(\w+)/verify", Handler.verify),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.download),
]


@contextmanager
def serve(part: int = 2**16) -> Iterator[Hub]:
    """Run a server; LFS objects of more than `part` bytes are uploaded in parts."""
    hub = Hub(part)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.is_over.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
